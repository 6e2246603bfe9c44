"""Two networks that run at different rates count digits in streams of images (DNI §3.3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ....core.modes import evaluating
from ....engines import Clocked, Edge, Node
from ....rules import SyntheticGradient, TrueGradient
from ...tasks import DigitBlock, DigitStream, FastCounter, SlowCounter, counting_networks, report_accuracy
from ..payloads import Multirate
from ..run import Run
from ..run_monitor import pack, unpack
from ..settings import EdgeSettings
from ..trainers import precision_context
from .feed_forward import data_for
from .task import Evaluation, Task

__all__ = ["MultirateTask", "run_block"]

_DIGITS = 10
_TEST_BLOCKS = 4
_TEST_STREAMS = 500
_TEST_SEED = 12345  # the same test digits for every run


class MultirateTask(Task):
    """Trains two networks to count digits; a step is a block, which is an episode.

    With `TrueGradient` at the edge both networks wait for each other, and are updated once in ``T²`` steps of the
    stream. With a synthetic gradient A is updated once in ``T`` steps, while B is still reading.
    """

    monitor_every = 50
    finite = ("a_train_loss", "b_train_loss")

    trainer: Clocked

    def __init__(self, run: Run) -> None:
        super().__init__(run)
        assert isinstance(run.payload, Multirate)
        self.payload = run.payload
        self.stream: DigitStream
        self.fast: FastCounter
        self.slow: SlowCounter
        self._block: DigitBlock  # block of the next step
        self._tests: list[DigitBlock] = []
        self._losses: dict[
            str, list[Tensor]
        ] = {}  # training losses of each network since the last evaluation
        self._num_updates: dict[str, int] = {"A": 0, "B": 0}

    def set_up(self) -> None:
        """Load the digits, and build the networks and the engine."""
        run, payload = self.run, self.payload
        assert isinstance(run.rule, EdgeSettings)
        data = data_for(payload.data, run.data_dir, payload.hold_out, run.device)
        self.data_sha256 = data.sha256
        generator = torch.Generator().manual_seed(run.seed)
        self.stream = DigitStream(data.train, run.schedule.batch_size, payload.period, generator)
        unseen = DigitStream(
            data.test, _TEST_STREAMS, payload.period, torch.Generator().manual_seed(_TEST_SEED)
        )
        self._tests = [unseen.block() for _ in range(_TEST_BLOCKS)]
        shape = tuple(data.train.x.shape[1:])
        fast, slow = counting_networks(shape, payload.period, payload.width)
        self.fast, self.slow = fast.to(run.device), slow.to(run.device)
        rule = TrueGradient() if run.method == "bptt" else self._rule(run.rule)
        lr = run.schedule.lr
        self.trainer = Clocked(
            [Node("A", self.fast, 1, payload.period), Node("B", self.slow, payload.period, payload.period)],
            [Edge("A", "B", rule, output="message")],
            {"A": reported, "B": reported},
            lambda parameters: torch.optim.Adam(parameters, lr, fused=True),
            example={"A": data.train.x[: run.schedule.batch_size]},
            rule_options=None if run.rule.lr_factor == 1 else {"lr": lr * run.rule.lr_factor},
            monitor=self.monitor,
        )
        self.net = self.trainer.net

    def _rule(self, settings: EdgeSettings) -> SyntheticGradient:
        context = _DIGITS if self.run.method == "cdni" else None
        return SyntheticGradient(
            settings.hidden, context, norm=settings.norm, receiver=settings.receiver, learned_table=True
        )

    def draw_data(self) -> None:
        self._block = self.stream.block()

    def step(self) -> bool:
        """Train on a block."""
        block = self._block
        last, period = len(block) - 1, block.period
        shown = _histograms(block) if self.run.method == "cdni" else None
        with precision_context(self.run.precision, self.run.device):
            for t, (inputs, targets) in enumerate(block.steps()):
                # The rule is used only at the steps at which B reads A's message.
                context = shown[t // period] if shown is not None and (t + 1) % period == 0 else None
                done = self.trainer.step(inputs, targets, context=context, last=t == last)
                for name, loss in done.losses.items():
                    self._losses.setdefault(name, []).append(loss)
                for name in done.updated:
                    self._num_updates[name] += 1
        return False

    def evaluate(self, step: int) -> Evaluation:
        """Evaluate how well both networks count test digits."""
        self.trainer.flush()
        with precision_context(self.run.precision, self.run.device):
            found = [report_accuracy(run_block(self.fast, self.slow, block), block) for block in self._tests]
        losses = {name: float(torch.stack(values).mean()) for name, values in self._losses.items()}
        self._losses = {}
        point: Evaluation = {"examples_seen": step * self.run.schedule.batch_size * self.payload.period**2}
        for name in ("A", "B"):
            point[f"{name.lower()}_accuracy_pct"] = 100 * sum(f[name] for f in found) / len(found)
            point[f"{name.lower()}_train_loss"] = losses.get(name)
        if measured := self.monitor.collect():
            point["quality"] = {name: asdict(q) for name, q in measured.items()}
        return point

    def metrics(self, curve: Sequence[Evaluation], elapsed_s: float) -> dict[str, Any]:
        """Return accuracies, and numbers and rates of updates."""
        num_images = self.run.schedule.steps * self.payload.period**2 * self.run.schedule.batch_size
        return {
            **{k: curve[-1][k] for k in ("a_accuracy_pct", "b_accuracy_pct", "examples_seen")},
            **{f"{n.lower()}_updates": k for n, k in self._num_updates.items()},
            **{f"{n.lower()}_updates_per_s": k / elapsed_s for n, k in self._num_updates.items()},
            "images_per_s": num_images / elapsed_s,
            "num_parameters": sum(p.numel() for m in (self.fast, self.slow) for p in m.parameters()),
        }

    def state_dict(self) -> dict[str, Any]:
        return {
            "stream": self.stream.state_dict(),
            "updates": self._num_updates,
            "losses": {name: pack(losses) for name, losses in self._losses.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.stream.load_state_dict(state["stream"])
        self._num_updates = state["updates"]
        self._losses = {name: unpack(losses) for name, losses in state["losses"].items()}


def _histograms(block: DigitBlock) -> Tensor:
    """Return how often each digit occurs in each ``T`` steps, ``(T, B, 10)``: the context of the rule of cDNI."""
    one_hot = F.one_hot(block.digits, _DIGITS).float()  # (T², B, 10)
    return one_hot.view(block.period, block.period, *one_hot.shape[1:]).sum(1)


def reported(outputs: Mapping[str, Tensor], counts: Tensor) -> Tensor:
    """Return the cross-entropy of a report, averaged over streams."""
    return F.cross_entropy(outputs["report"].float(), counts)


@torch.no_grad()
def run_block(fast: nn.Module, slow: nn.Module, block: DigitBlock) -> list[dict[str, Any]]:
    """Return the outputs of both networks at every step of a block, by network, in evaluation mode."""
    outputs: list[dict[str, Any]] = []
    states: dict[str, Any] = {"A": None, "B": None}
    with evaluating(fast, slow):
        for t, x in enumerate(block.x):
            made: dict[str, Any] = {}
            made["A"], states["A"] = fast({"input": x}, states["A"])
            if (t + 1) % block.period == 0:
                made["B"], states["B"] = slow({"A": made["A"]["message"]}, states["B"])
            outputs.append(made)
    return outputs
