"""The loop of one run: its data, its trainer, its clock, its curve and its snapshots."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...core import ConfigError, Decoupled, DivergedError
from ...core.modes import evaluating
from ..tasks import Augment, Images, Split, draw_batches, load
from .base_loop import BaseLoop, Progress
from .compiled import compile_network
from .config import RunConfig
from .graph_record import describe_graph
from .in_stages import engine_here
from .machine import synchronize
from .methods import Facts, method_named
from .models import build_model, cuts_of
from .run_monitor import pack, unpack
from .trainers import CHANNELS_LAST, Plan, Trainer, arithmetic, make_trainer

__all__ = ["Loop", "data_for"]

_CHUNK = 10  # steps between clock readings


@lru_cache(maxsize=2)
def data_for(
    name: str,
    data_dir: str | None,
    hold_out: int,
    device: str,
    layout: torch.memory_format = torch.preserve_format,
) -> Images:
    """Return a data set on the device, in a layout; the same object to every run of this process."""
    data = load(name, Path(data_dir) if data_dir else None)
    return (data.hold_out(hold_out) if hold_out else data).to(torch.device(device), layout)


class Loop(BaseLoop):
    """A run of a feed-forward network: its data, its trainer.

    Attributes:
        net, trainer, data: made by `prepare`, as is `graph`.
    """

    def __init__(self, config: RunConfig, progress: Progress | None) -> None:
        super().__init__(config.device, progress, config.monitor_every or 1)
        self.config = config
        self.part = "val" if config.hold_out else "test"
        self.updates = 0
        self._parameters = 0
        self._modules = 1
        self._losses: list[Tensor] = []  # since the last point of the curve
        self._augment: Augment | None = None

    def prepare(self) -> None:
        """Load the data, build the network and its trainer."""
        config = self.config
        # A network that flattens its input would have to copy it; whether a user's own does, nobody knows.
        layout = CHANNELS_LAST if config.cell.arch == "cnn" else torch.preserve_format
        self.data = data_for(config.cell.data, config.data_dir, config.hold_out, config.device, layout)
        self.data_sha256 = self.data.sha256
        if config.augment:
            self._augment = Augment(config.seed, flip=self.data.mirrored)
        model = build_model(config.cell, self.data).to(config.device, memory_format=CHANNELS_LAST)  # pyright: ignore[reportCallIssue]
        self._parameters = sum(p.numel() for p in model.parameters())
        self.net, self.trainer = self._trainer(model)
        if config.compiled:
            torch.compiler.reset()  # graphs of an earlier run's network would count against the limit of this one
            compile_network(self.net, config.cell.engine)
        self.graph = describe_graph(self.net, config.cell.engine)
        self._base_lrs = [[g["lr"] for g in o.param_groups] for o in self.trainer.optimizers]

    def _trainer(self, model: nn.Module) -> tuple[nn.Module, Trainer]:
        config = self.config
        plan = Plan(
            method_named(config.method),
            config.rule,
            Facts(self.data.classes, len(self.data.train)),
            config.schedule.lr,
            config.seed,
            engine_here(config.cell.engine),
            config.cell.update_prob,
            config.precision,
            self.monitor if config.monitor_every else None,
            config.compiled,
        )
        example = self.data.train.x[: config.schedule.batch_size]
        cuts = [] if plan.method.rule is None else cuts_of(config.cell, model, example)
        net, trainer = make_trainer(plan, model, cuts, example)
        if isinstance(net, Decoupled) and plan.engine not in (
            "plain",
            "stages",
        ):  # a process has one module there
            self._modules = len(net.graph.modules)
        return net, trainer

    def train(self) -> None:
        """Run all steps, with an evaluation now and then that no clock counts."""
        schedule, train = self.config.schedule, self.data.train
        if self.events is not None and self.graph is not None:
            with self._eager():
                self.events.graph(self.net, train.x[: schedule.batch_size], self.graph)
        batches = draw_batches(len(train), schedule.batch_size, self.config.seed, train.y.device)
        # Those of a run that is resumed are drawn again.
        batches = itertools.islice(batches, self._step, None)
        if not self.net.training:  # else parts that were frozen with eval() would thaw
            self.net.train()
        while self._step < schedule.steps:
            step = self._step
            self._set_lr(step)
            end = min(step + _CHUNK, schedule.steps, step - step % schedule.eval_every + schedule.eval_every)
            end = min([end, *(m for m in self._lr_changes() if m > step)])
            try:
                self._chunk(batches, end - step)
            except Exception as error:
                if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
                    raise
                reason = next(
                    (line for line in str(error).splitlines() if line.strip()), type(error).__name__
                )
                raise ConfigError(f"cannot be compiled: {reason}; run it without compiling") from error
            self._step = end
            if end % schedule.eval_every == 0 or end == schedule.steps:
                self._evaluate()
            self.keep()
            if self.progress is not None:
                self.progress(end)

    def take(self, state: Mapping[str, Any]) -> None:
        """Go on from a state."""
        super().take(state)
        self.updates, self._losses = state["updates"], unpack(state["losses"])
        if self._augment is not None:
            self._augment.load_state_dict(state["augment"])

    def state(self) -> dict[str, Any]:
        """Return all that the rest of the run depends on, between two steps."""
        return {
            **super().state(),
            "updates": self.updates,
            "losses": pack(self._losses),
            "augment": {} if self._augment is None else self._augment.state_dict(),
        }

    def _precision(self) -> AbstractContextManager[Any]:
        """Return the context in which a step's arithmetic runs."""
        return arithmetic(self.config.precision, self.config.device)

    def _eager(self) -> AbstractContextManager[Any]:
        """Return the context of what is not compiled: no clock counts it, and graphs are of training batches."""
        return torch.compiler.set_stance("force_eager") if self.config.compiled else nullcontext()

    def _lr_changes(self) -> list[int]:
        schedule = self.config.schedule
        return [math.ceil(share * schedule.steps) for share in schedule.milestones]

    def _set_lr(self, step: int) -> None:
        factor = self.config.schedule.lr_factor(step)
        for optimizer, lrs in zip(self.trainer.optimizers, self._base_lrs, strict=True):
            for group, lr in zip(optimizer.param_groups, lrs, strict=True):
                if not group.get("constant_lr"):
                    group["lr"] = lr * factor

    def _chunk(self, batches: Iterator[Tensor], n: int) -> None:
        train = self.data.train
        start = time.perf_counter()
        for _ in range(n):
            ids = next(batches)
            x = train.x[ids] if self._augment is None else self._augment(train.x[ids])
            with self._precision():
                done = self.trainer.step(x, train.y[ids], ids=ids)
            self.updates += len(done.updated)
            if done.loss is not None:
                self._losses.append(done.loss)
        synchronize(self.config.device)
        seconds = time.perf_counter() - start
        self._elapsed += seconds
        self._chunks.append(seconds / n)

    def _evaluate(self) -> None:
        self.trainer.finish()
        step, losses, self._losses = self._step, self._losses, []
        train, test = self.data.train, self.data.test
        loss, error = self._measure(test)
        # As many training examples as there are to measure on, the same ones each time.
        _, train_error = self._measure(Split(train.x[: len(test)], train.y[: len(test)]))
        point: dict[str, Any] = {
            "step": step,
            "elapsed_s": round(self._elapsed, 4),
            "train_loss": float(torch.stack(losses).mean()) if losses else None,
            "train_error_pct": train_error,
            f"{self.part}_loss": loss,
            f"{self.part}_error_pct": error,
        }
        if found := self.monitor.collect():
            point["quality"] = {name: asdict(q) for name, q in found.items()}
        self.add_point(point)
        if not math.isfinite(loss):
            raise DivergedError("loss", step - 1)

    def _measure(self, split: Split) -> tuple[float, float]:
        with self._precision(), self._eager():
            return measure(self.net, split)

    def metrics(self) -> dict[str, Any]:
        """Return the figures of the finished run."""
        train_loss, train_error = self._measure(self.data.train)
        last = self.curve[-1]
        key = f"{self.part}_error_pct"
        reached = [p["elapsed_s"] for p in self.curve if p[key] <= self.config.target_error_pct]
        return {
            key: last[key],
            f"{self.part}_loss": last[f"{self.part}_loss"],
            "train_error_pct": train_error,
            "train_loss": train_loss,
            "time_to_target_s": reached[0] if reached else None,
            "updates_skipped_share": 1 - self.updates / (self._modules * self.config.schedule.steps),
            "num_parameters": self._parameters,
            "data_sha256": self.data.sha256,
        }


@torch.no_grad()
def measure(net: nn.Module, split: Split, batch: int = 1000) -> tuple[float, float]:
    """Return mean loss and error in percent of a network on a split, in evaluation mode."""
    loss, wrong = 0.0, 0
    with evaluating(net):
        for start in range(0, len(split), batch):
            x, y = split.x[start : start + batch], split.y[start : start + batch]
            output = net(x).float()
            loss += nn.functional.cross_entropy(output, y, reduction="sum").item()
            wrong += int((output.argmax(1) != y).sum())
    return loss / len(split), 100 * wrong / len(split)
