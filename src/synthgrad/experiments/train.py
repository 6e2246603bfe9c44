"""The run loop: trains one configuration and returns its record."""

from __future__ import annotations

import math
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from ..core import DivergedError, Monitor, SynthgradError, decouple
from ..engines import InProcess, Locked, StepRecord
from ..records import SCHEMA, Record
from ..tasks import Images, Split, draw_batches, load
from .config import RunConfig
from .graph_record import describe_graph
from .machine import describe, synchronize
from .methods import Facts, method_named
from .models import build_model, cuts_of
from .tensorboard import Events, run_folder

__all__ = ["Loop", "Progress", "blank", "data_for", "run"]

#: Called with the number of steps done, now and then.
Progress = Callable[[int], None]

_CHUNK = 10  # steps between clock readings


class _Trainer(Protocol):
    optimizers: Any

    def step(self, x: Tensor, y: Any, *, ids: Tensor | None = None) -> StepRecord: ...
    def finish(self) -> None: ...


@lru_cache(maxsize=2)
def data_for(name: str, data_dir: str | None, hold_out: int, device: str) -> Images:
    """Return a data set on the device; the same object to every run of this process."""
    data = load(name, Path(data_dir) if data_dir else None)
    return (data.hold_out(hold_out) if hold_out else data).to(torch.device(device))


def run(config: RunConfig, progress: Progress | None = None, jobs: int = 1) -> Record:
    """Train one configuration and return its record, whatever becomes of it.

    Args:
        config: the run.
        progress: is told how far it is.
        jobs: how many runs share the machine, for the record.
    """
    record = blank(config, jobs)
    loop = Loop(config, progress)
    try:
        _warm_up(config.device)
        if config.tensorboard is not None:
            loop.events = Events(run_folder(Path(config.tensorboard), record), record)
        with torch.random.fork_rng():
            torch.manual_seed(config.seed)
            loop.prepare()
            loop.train()
        record["metrics"] = loop.metrics()
    except DivergedError as error:
        record["status"], record["error"] = "diverged", str(error)
    except SynthgradError as error:
        record["status"], record["error"] = "failed", str(error)
    except Exception as error:  # out of memory, a fault of the user's network: a record that says so
        record["status"], record["error"] = "failed", f"{type(error).__name__}: {error}"
        record["traceback"] = traceback.format_exc()
    record["time"], record["curve"], record["graph"] = loop.times(), loop.curve, loop.graph
    if loop.events is not None:
        loop.events.close(record)
    return record


@cache
def _warm_up(device: str) -> None:
    """Take one step of something tiny, so that no run's clock counts what PyTorch loads at first use."""
    with torch.random.fork_rng():
        model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)).to(device)
        optimizer = torch.optim.Adam(model.parameters(), 1e-3, fused=True)
        nn.functional.cross_entropy(
            model(torch.ones(2, 2, device=device)), torch.zeros(2, device=device).long()
        ).backward()
        optimizer.step()
        synchronize(device)


def blank(config: RunConfig, jobs: int) -> Record:
    """Return the record of a run that has not begun."""
    cell = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(config.cell).items()}
    return {
        "schema": SCHEMA,
        "experiment": config.experiment,
        "tier": config.tier,
        "method": config.method,
        "seed": config.seed,
        "cell": cell,
        "steps": config.schedule.steps,
        "batch_size": config.schedule.batch_size,
        "metrics": {},
        "time": {},
        "curve": [],
        "status": "ok",
        "error": None,
        "config": config.recorded(),
        "env": describe(config.device, jobs),
        "graph": None,
        "estimate": {"ratio_to_backprop": config.estimated_ratio},
    }


class Loop:
    """One run: its data, its trainer, its clock and its curve.

    Attributes:
        net, trainer, data: made by `prepare`.
        graph: the modules and interfaces, for the record; made by `prepare`.
        curve: points, one for each evaluation.
        events: is told of the graph and of every point; or None.
    """

    def __init__(self, config: RunConfig, progress: Progress | None) -> None:
        self.config = config
        self.progress = progress
        self.curve: list[dict[str, Any]] = []
        self.graph: dict[str, Any] | None = None
        self.events: Events | None = None
        self.part = "val" if config.hold_out else "test"
        self.updates = 0
        self._chunks: list[float] = []
        self._elapsed = 0.0
        self._parameters = 0
        self._modules = 1
        self._monitor = Monitor(config.monitor_every) if config.monitor_every else None

    def prepare(self) -> None:
        """Load the data, build the network and its trainer."""
        config = self.config
        self.data = data_for(config.cell.data, config.data_dir, config.hold_out, config.device)
        model = build_model(config.cell, self.data).to(config.device)
        self._parameters = sum(p.numel() for p in model.parameters())
        self.net, self.trainer = self._trainer(model)
        self.graph = describe_graph(self.net, config.cell.engine)
        self._base_lrs = [[g["lr"] for g in o.param_groups] for o in self.trainer.optimizers]

    def _trainer(self, model: nn.Module) -> tuple[nn.Module, _Trainer]:
        config = self.config
        method = method_named(config.method)
        criterion = nn.CrossEntropyLoss(reduction="none" if method.wants_values else "mean")
        lr = config.schedule.lr

        def optimizer(parameters: Any) -> torch.optim.Optimizer:
            return torch.optim.Adam(parameters, lr, fused=True)  # the fastest, for every method

        if method.rule is None:
            return model, Locked(model, criterion, optimizer)
        example = self.data.train.x[: config.schedule.batch_size]
        settings = config.rule
        net = decouple(
            model,
            cuts_of(config.cell, model, example),
            method.rule(settings, Facts(self.data.classes, len(self.data.train))),
            example,
            reduction="mean" if settings.per_example else "sum",
        )
        options: dict[str, Any] | None = None  # one parameter group for module and rule is the faster way
        if settings.lr_factor != 1 or settings.constant_lr:
            options = {"lr": lr * settings.lr_factor, "constant_lr": settings.constant_lr}
        if config.cell.engine == "plain":
            net.monitor = self._monitor
            return net, Locked(net, criterion, optimizer, rule_options=options)
        self._modules = len(net.graph.modules)
        generator = torch.Generator().manual_seed(config.seed)
        return net, InProcess(
            net,
            criterion,
            optimizer,
            rule_options=options,
            update_prob=config.cell.update_prob,
            generator=generator,
            monitor=self._monitor,
        )

    def train(self) -> None:
        """Run all steps, with an evaluation now and then that no clock counts."""
        schedule, train = self.config.schedule, self.data.train
        if self.events is not None and self.graph is not None:
            self.events.graph(self.net, train.x[: schedule.batch_size], self.graph)
        batches = draw_batches(len(train), schedule.batch_size, self.config.seed, train.y.device)
        losses: list[Tensor] = []
        step = 0
        self.net.train()
        while step < schedule.steps:
            self._set_lr(step)
            end = min(step + _CHUNK, schedule.steps, step - step % schedule.eval_every + schedule.eval_every)
            end = min([end, *(m for m in self._lr_changes() if m > step)])
            losses += self._chunk(batches, end - step)
            step = end
            if step % schedule.eval_every == 0 or step == schedule.steps:
                self._evaluate(step, losses)
                losses = []
            if self.progress is not None:
                self.progress(step)

    def _lr_changes(self) -> list[int]:
        schedule = self.config.schedule
        return [math.ceil(share * schedule.steps) for share in schedule.milestones]

    def _set_lr(self, step: int) -> None:
        factor = self.config.schedule.lr_factor(step)
        for optimizer, lrs in zip(self.trainer.optimizers, self._base_lrs, strict=True):
            for group, lr in zip(optimizer.param_groups, lrs, strict=True):
                if not group.get("constant_lr"):
                    group["lr"] = lr * factor

    def _chunk(self, batches: Iterator[Tensor], n: int) -> list[Tensor]:
        train, losses = self.data.train, []
        start = time.perf_counter()
        for _ in range(n):
            ids = next(batches)
            done = self.trainer.step(train.x[ids], train.y[ids], ids=ids)
            self.updates += len(done.updated)
            if done.loss is not None:
                losses.append(done.loss)
        synchronize(self.config.device)
        seconds = time.perf_counter() - start
        self._elapsed += seconds
        self._chunks.append(seconds / n)
        return losses

    def _evaluate(self, step: int, losses: list[Tensor]) -> None:
        self.trainer.finish()
        train, test = self.data.train, self.data.test
        loss, error = measure(self.net, test)
        # As many training examples as there are to measure on, the same ones each time.
        _, train_error = measure(self.net, Split(train.x[: len(test)], train.y[: len(test)]))
        point: dict[str, Any] = {
            "step": step,
            "elapsed_s": round(self._elapsed, 4),
            "train_loss": float(torch.stack(losses).mean()) if losses else None,
            "train_error_pct": train_error,
            f"{self.part}_loss": loss,
            f"{self.part}_error_pct": error,
        }
        if self._monitor is not None and (found := self._monitor.collect()):
            point["quality"] = {name: asdict(q) for name, q in found.items()}
        self.curve.append(point)
        if self.events is not None:
            self.events.point(point)
        if not math.isfinite(loss):
            raise DivergedError("loss", step - 1)

    def metrics(self) -> dict[str, Any]:
        """Return the figures of the finished run."""
        train_loss, train_error = measure(self.net, self.data.train)
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

    def times(self) -> dict[str, Any]:
        """Return the clock's figures; the first chunks, which warm up, count for the total only."""
        chunks = self._chunks[3:] or self._chunks
        if not chunks:
            return {}
        p10, median, p90 = (float(v) * 1e3 for v in np.percentile(chunks, (10, 50, 90)))
        return {
            "train_s": round(self._elapsed, 3),
            "step_ms_median": round(median, 4),
            "step_ms_p10": round(p10, 4),
            "step_ms_p90": round(p90, 4),
        }


@torch.no_grad()
def measure(net: nn.Module, split: Split, batch: int = 5000) -> tuple[float, float]:
    """Return mean loss and error in percent of a network on a split, in evaluation mode."""
    net.eval()
    loss, wrong = 0.0, 0
    for start in range(0, len(split), batch):
        x, y = split.x[start : start + batch], split.y[start : start + batch]
        output = net(x)
        loss += nn.functional.cross_entropy(output, y, reduction="sum").item()
        wrong += int((output.argmax(1) != y).sum())
    net.train()
    return loss / len(split), 100 * wrong / len(split)
