"""Feed-forward networks on labelled examples."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ....core import ConfigError, Decoupled
from ....core.modes import evaluating
from ...tasks import Augment, LabelledData, Split, draw_batches, load
from ...tasks.own_data import version_of
from ..compiled import compile_network
from ..graph_record import describe_graph
from ..in_stages import local_engine
from ..methods import DataFacts, method_named
from ..models import build_model, cuts_of
from ..payloads import FeedForward
from ..run import Run
from ..run_monitor import pack, unpack
from ..settings import RuleSettings
from ..tensorboard import EventWriter
from ..trainers import CHANNELS_LAST, Trainer, TrainerSpec, make_trainer, precision_context
from .task import Evaluation, Task

__all__ = ["FeedForwardTask", "data_for"]

_COMPILERS = ("torch._dynamo", "torch._inductor")


def data_for(
    name: str,
    data_dir: str | None,
    hold_out: int,
    device: str,
    layout: torch.memory_format = torch.preserve_format,
) -> LabelledData:
    """Load a data set onto a device, in a memory layout; it is cached for all runs of this process.

    The user's own data are loaded anew if their file or factory has changed.
    """
    return _cached(version_of(name), name, data_dir, hold_out, device, layout)


@lru_cache(maxsize=2)
def _cached(
    version: Any, name: str, data_dir: str | None, hold_out: int, device: str, layout: torch.memory_format
) -> LabelledData:
    data = load(name, Path(data_dir) if data_dir else None)
    return (data.hold_out(hold_out) if hold_out else data).to(torch.device(device), layout)


class FeedForwardTask(Task):
    """Trains a feed-forward network; a step is a batch.

    Attributes:
        data: the data set, loaded by `set_up`.
    """

    chunk = 10

    data: LabelledData
    trainer: Trainer

    def __init__(self, run: Run) -> None:
        assert isinstance(run.payload, FeedForward)
        self.payload = run.payload
        self.monitor_every = self.payload.monitor_every or 1
        super().__init__(run)
        part = "val" if self.payload.hold_out else "test"
        self._loss, self._error = f"{part}_loss", f"{part}_error_pct"
        self.finite = (self._loss,)
        self._num_updates = 0
        self._num_parameters = 0
        self._num_modules = 1
        self._losses: list[Tensor] = []  # training losses since the last evaluation
        self._augment: Augment | None = None
        self._batches: Iterator[Tensor] = iter(())

    def set_up(self) -> None:
        """Load the data, and build the network and its trainer."""
        run, payload = self.run, self.payload
        # Channels last only for our own convolutional network, because a network that flattens its input would copy it.
        layout = CHANNELS_LAST if payload.arch == "cnn" else torch.preserve_format
        self.data = data_for(payload.data, run.data_dir, payload.hold_out, run.device, layout)
        self.data_sha256 = self.data.sha256
        if payload.augment and self.data.train.x.ndim != 4:
            raise ConfigError(
                f"--augment: '{payload.data}' has inputs of shape {tuple(self.data.train.x.shape[1:])}, expected images "
                "(C, Y, X); leave out --augment"
            )
        if payload.augment:
            self._augment = Augment(run.seed, flip=self.data.mirrored)
        model = build_model(payload, self.data).to(run.device, memory_format=CHANNELS_LAST)  # pyright: ignore[reportCallIssue]
        self._num_parameters = sum(p.numel() for p in model.parameters())
        self.net, self.trainer = self._make_trainer(model)
        if payload.compiled:
            torch.compiler.reset()  # graphs of earlier runs would count against the compiler's limit
            compile_network(self.net, payload.engine)
        self.graph = describe_graph(self.net, payload.engine)

    def _make_trainer(self, model: nn.Module) -> tuple[nn.Module, Trainer]:
        run, payload = self.run, self.payload
        assert isinstance(run.rule, RuleSettings)
        plan = TrainerSpec(
            method_named(run.method),
            run.rule,
            DataFacts(self.data.classes, len(self.data.train)),
            run.schedule.lr,
            run.seed,
            local_engine(payload.engine),
            payload.update_prob,
            run.precision,
            self.monitor if payload.monitor_every else None,
            payload.compiled,
            **run.schedule.of_optimizer(),
        )
        example = self.data.train.x[: run.schedule.batch_size]
        cuts = [] if plan.method.rule is None else cuts_of(payload, model, example)
        net, trainer = make_trainer(plan, model, cuts, example)
        if isinstance(net, Decoupled) and plan.engine not in (
            "plain",
            "stages",
        ):  # a process has one module there
            self._num_modules = len(net.graph.modules)
        return net, trainer

    def draw_graph(self, events: EventWriter) -> None:
        """Write the network's graph to the event files."""
        assert self.graph is not None
        with self._eager():
            events.graph(self.net, self.data.train.x[: self.run.schedule.batch_size], self.graph)

    def begin(self, step: int) -> None:
        """Skip the batches of the steps that are done, and set the network to training mode."""
        train = self.data.train
        batches = draw_batches(len(train), self.run.schedule.batch_size, self.run.seed, train.y.device)
        self._batches = itertools.islice(batches, step, None)
        if not self.net.training:  # train() would also change submodules that the user has set to eval()
            self.net.train()

    def step(self) -> bool:
        """Train on one batch."""
        train, ids = self.data.train, next(self._batches)
        x = train.x[ids] if self._augment is None else self._augment(train.x[ids])
        try:
            with self._precision():
                done = self.trainer.step(x, train.y[ids], ids=ids)
        except Exception as error:
            if not type(error).__module__.startswith(_COMPILERS):
                raise
            lines = [line for line in str(error).splitlines() if line.strip()]
            reason = lines[0] if lines else type(error).__name__
            raise ConfigError(f"the network cannot be compiled: {reason}; leave out --compile") from error
        self._num_updates += len(done.updated)
        if done.loss is not None:
            self._losses.append(done.loss)
        return False

    def evaluate(self, step: int) -> Evaluation:
        """Evaluate the network on the test part, and on the same number of training examples."""
        self.trainer.flush()
        losses, self._losses = self._losses, []
        train, test = self.data.train, self.data.test
        loss, error = self._measure(test)
        # The first ones, so that every evaluation uses the same training examples.
        _, train_error = self._measure(Split(train.x[: len(test)], train.y[: len(test)]))
        point: Evaluation = {
            "train_loss": float(torch.stack(losses).mean()) if losses else None,
            "train_error_pct": train_error,
            self._loss: loss,
            self._error: error,
        }
        if found := self.monitor.collect():
            point["quality"] = {name: asdict(q) for name, q in found.items()}
        return point

    def metrics(self, curve: Sequence[Evaluation], elapsed_s: float) -> dict[str, Any]:
        """Return losses and errors, the time until the target error was reached, and the fraction of skipped updates."""
        train_loss, train_error = self._measure(self.data.train)
        reached = [p["elapsed_s"] for p in curve if p[self._error] <= self.payload.target_error_pct]
        num_possible_updates = self._num_modules * self.run.schedule.steps
        return {
            self._error: curve[-1][self._error],
            self._loss: curve[-1][self._loss],
            "train_error_pct": train_error,
            "train_loss": train_loss,
            "time_to_target_s": reached[0] if reached else None,
            "updates_skipped_share": 1 - self._num_updates / num_possible_updates,
            "num_parameters": self._num_parameters,
            "data_sha256": self.data.sha256,
        }

    def state_dict(self) -> dict[str, Any]:
        return {
            "updates": self._num_updates,
            "losses": pack(self._losses),
            "augment": {} if self._augment is None else self._augment.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._num_updates, self._losses = state["updates"], unpack(state["losses"])
        if self._augment is not None:
            self._augment.load_state_dict(state["augment"])

    def _precision(self) -> AbstractContextManager[Any]:
        """Return the context for the arithmetic of a step."""
        return precision_context(self.run.precision, self.run.device)

    def _eager(self) -> AbstractContextManager[Any]:
        """Return a context without compiled graphs: they are made for training batches, and evaluation is not timed."""
        return torch.compiler.set_stance("force_eager") if self.payload.compiled else nullcontext()

    def _measure(self, split: Split) -> tuple[float, float]:
        with self._precision(), self._eager():
            return measure(self.net, split)


@torch.no_grad()
def measure(net: nn.Module, split: Split, batch: int = 1000) -> tuple[float, float]:
    """Return a network's mean loss and its error in percent on a split, in evaluation mode."""
    loss, wrong = 0.0, 0
    with evaluating(net):
        for start in range(0, len(split), batch):
            x, y = split.x[start : start + batch], split.y[start : start + batch]
            output = net(x).float()
            loss += nn.functional.cross_entropy(output, y, reduction="sum").item()
            wrong += int((output.argmax(1) != y).sum())
    return loss / len(split), 100 * wrong / len(split)
