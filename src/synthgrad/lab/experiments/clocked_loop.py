"""Runs of the counting task: two networks, their streams, and their reports on unseen digits."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...core import DivergedError
from ...core.modes import evaluating
from ...engines import Clocked, Edge, Node
from ...rules import SyntheticGradient, TrueGradient
from ..tasks import Block, Counting, FastCounter, SlowCounter, counting_networks, report_accuracy
from .base_loop import BaseLoop, Progress
from .loop import data_for
from .machine import synchronize
from .multinet_config import ClockedRun
from .run_monitor import pack, unpack
from .trainers import arithmetic

__all__ = ["ClockedLoop", "run_block"]

_DIGITS = 10
_TEST_BLOCKS = 4
_TEST_STREAMS = 500
_TEST_SEED = 12345  # the same unseen digits for every run


class ClockedLoop(BaseLoop):
    """A run of the counting task; a step is a block, which is an episode.

    With `TrueGradient` on the edge both networks wait for each other, and are updated once in ``T²`` steps. With a
    synthetic gradient A is updated every ``T``, while B is still reading.
    """

    def __init__(self, config: ClockedRun, progress: Progress | None) -> None:
        super().__init__(config.device, progress, monitor_every=50)
        self.config = config
        self.stream: Counting
        self.fast: FastCounter
        self.slow: SlowCounter
        self.trainer: Clocked
        self._tests: list[Block] = []
        self._losses: dict[str, list[Tensor]] = {}
        self._updates: dict[str, int] = {"A": 0, "B": 0}

    def prepare(self) -> None:
        """Load the digits, build networks and engine."""
        config, cell = self.config, self.config.cell
        data = data_for(cell.data, config.data_dir, config.hold_out, config.device)
        self.data_sha256 = data.sha256
        generator = torch.Generator().manual_seed(config.seed)
        self.stream = Counting(data.train, config.schedule.batch_size, cell.period, generator)
        unseen = Counting(data.test, _TEST_STREAMS, cell.period, torch.Generator().manual_seed(_TEST_SEED))
        self._tests = [unseen.block() for _ in range(_TEST_BLOCKS)]
        shape = tuple(data.train.x.shape[1:])
        fast, slow = counting_networks(shape, cell.period, cell.width)
        self.fast, self.slow = fast.to(config.device), slow.to(config.device)
        rule = TrueGradient() if config.method == "bptt" else self._rule()
        lr = config.schedule.lr
        self.trainer = Clocked(
            [Node("A", self.fast, 1, cell.period), Node("B", self.slow, cell.period, cell.period)],
            [Edge("A", "B", rule, output="message")],
            {"A": reported, "B": reported},
            lambda parameters: torch.optim.Adam(parameters, lr, fused=True),
            example={"A": data.train.x[: config.schedule.batch_size]},
            rule_options=None if config.rule.lr_factor == 1 else {"lr": lr * config.rule.lr_factor},
            monitor=self.monitor,
        )
        self.net = self.trainer.net

    def _rule(self) -> SyntheticGradient:
        rule = self.config.rule
        context = _DIGITS if self.config.method == "cdni" else None
        return SyntheticGradient(rule.hidden, context, norm=rule.norm, receiver=rule.receiver)

    def train(self) -> None:
        """Run all blocks."""
        schedule = self.config.schedule
        while self._step < schedule.steps:
            block = self.stream.block()  # drawn before the clock starts: it is the same for all methods
            begun = time.perf_counter()
            with arithmetic(self.config.precision, self.config.device):
                self._learn(block)
            synchronize(self.config.device)
            seconds = time.perf_counter() - begun
            self._elapsed += seconds
            self._chunks.append(seconds)
            self._step += 1
            if self._step % schedule.eval_every == 0 or self._step == schedule.steps:
                self._evaluate()
            self.keep()
            if self.progress is not None and self._step % 10 == 0:
                self.progress(self._step)

    def _learn(self, block: Block) -> None:
        last, period = len(block) - 1, block.period
        shown = _histograms(block) if self.config.method == "cdni" else None
        for t, (inputs, targets) in enumerate(block.steps()):
            # A message is read where B ticks, and only there a rule is asked.
            context = shown[t // period] if shown is not None and (t + 1) % period == 0 else None
            done = self.trainer.step(inputs, targets, context=context, last=t == last)
            for name, loss in done.losses.items():
                self._losses.setdefault(name, []).append(loss)
            for name in done.updated:
                self._updates[name] += 1

    def _evaluate(self) -> None:
        self.trainer.finish()
        with arithmetic(self.config.precision, self.config.device):
            found = [report_accuracy(run_block(self.fast, self.slow, block), block) for block in self._tests]
        losses = {name: float(torch.stack(values).mean()) for name, values in self._losses.items()}
        self._losses = {}
        point: dict[str, Any] = {
            "step": self._step,
            "elapsed_s": round(self._elapsed, 4),
            "examples_seen": self._step * self.config.schedule.batch_size * self.config.cell.period**2,
        }
        for name in ("A", "B"):
            point[f"{name.lower()}_accuracy_pct"] = 100 * sum(f[name] for f in found) / len(found)
            point[f"{name.lower()}_train_loss"] = losses.get(name)
        if measured := self.monitor.collect():
            point["quality"] = {name: asdict(q) for name, q in measured.items()}
        self.add_point(point)
        if not all(map(math.isfinite, losses.values())):
            raise DivergedError("loss", self._step - 1)

    def metrics(self) -> dict[str, Any]:
        """Return how well both networks count, and how often they were updated."""
        last = self.curve[-1]
        steps = self._step * self.config.cell.period**2
        return {
            **{k: last[k] for k in ("a_accuracy_pct", "b_accuracy_pct", "examples_seen")},
            **{f"{n.lower()}_updates": k for n, k in self._updates.items()},
            **{f"{n.lower()}_updates_per_s": k / self._elapsed for n, k in self._updates.items()},
            "images_per_s": steps * self.config.schedule.batch_size / self._elapsed,
            "num_parameters": sum(p.numel() for m in (self.fast, self.slow) for p in m.parameters()),
        }

    def state(self) -> dict[str, Any]:
        """Return all that the rest of the run depends on, between two blocks."""
        return {
            **super().state(),
            "stream": self.stream.state_dict(),
            "updates": self._updates,
            "losses": {name: pack(losses) for name, losses in self._losses.items()},
        }

    def take(self, state: Mapping[str, Any]) -> None:
        """Go on from a state."""
        super().take(state)
        self.stream.load_state_dict(state["stream"])
        self._updates = state["updates"]
        self._losses = {name: unpack(losses) for name, losses in state["losses"].items()}


def _histograms(block: Block) -> Tensor:
    """Return how often each digit came in each ``T`` steps, ``(T, B, 10)``: what conditions the rule of cDNI."""
    hot = F.one_hot(block.digits, _DIGITS).float()  # (T², B, 10)
    return hot.view(block.period, block.period, *hot.shape[1:]).sum(1)


def reported(outputs: Mapping[str, Tensor], counts: Tensor) -> Tensor:
    """Return the cross entropy of a report, mean over streams."""
    return F.cross_entropy(outputs["report"].float(), counts)


@torch.no_grad()
def run_block(fast: nn.Module, slow: nn.Module, block: Block) -> list[dict[str, Any]]:
    """Return the outputs of both networks at every step of a block, by network, without learning."""
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
