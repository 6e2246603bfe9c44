"""``bench step``: the time of a training step of every method over that of a hand-written loop.

Methods take turns: in every round each one runs some steps on the same batches, and its ratio is taken
to the backpropagation of the same round, so that a machine that slows down slows both.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ..core import ConfigError, decouple
from ..engines import InProcess, Locked
from ..records import SCHEMA, Record, append, open_folder
from ..tasks import cut_names, fully_connected, load
from .config import RuleSettings
from .machine import describe, prepare, synchronize
from .methods import method_named

__all__ = ["METHODS", "StepBench"]

METHODS = ("backprop", "no_bprop", "dni", "cdni")

Step = Callable[[], object]
_NUM_BATCHES = 16
_WARM_UP = 20


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A row of the benchmark: a method on an engine."""

    method: str
    engine: str
    update_prob: float = 1.0


def _candidates(methods: Sequence[str]) -> list[_Candidate]:
    rows = [_Candidate("backprop", "hand-written loop")]
    for name in methods:
        if method_named(name).rule is None:
            continue
        rows += [_Candidate(name, "in-process")]
        if name == "cdni":
            rows += [_Candidate(name, "plain"), _Candidate(name, "in-process", 0.2)]
    return rows


@dataclass(frozen=True, slots=True)
class StepBench:
    """Measures steps of a fully connected network on embedded digits, Adam (fused), linear ``M``.

    Attributes:
        widths, layers, batch_sizes: every combination is measured.
        methods: names; backpropagation is always measured along.
        rounds: how often the methods take turns.
        threads: CPU threads.
        device: ``cpu`` or ``cuda``.
        seconds: length of a method's turn in a round, about.
    """

    widths: Sequence[int]
    layers: Sequence[int]
    batch_sizes: Sequence[int]
    methods: Sequence[str] = METHODS
    rounds: int = 15
    threads: int = 1
    device: str = "cpu"
    seconds: float = 0.25

    def run(self, out: Path, say: Callable[[str], None] | None = None) -> Iterator[Record]:
        """Measure; append each setting's records to the folder's file and yield them.

        Raises:
            ConfigError: if a method is unknown, a setting out of range or the folder not writable.
        """
        candidates = _candidates(self.methods)
        for batch_size in self.batch_sizes:
            self._batches(batch_size)  # refuses what does not fit, before anything is written
        path = open_folder(out)
        prepare(self.threads)
        for width, layers, batch_size in itertools.product(self.widths, self.layers, self.batch_sizes):
            if say is not None:
                say(f"step: {layers} layers × {width}, batch {batch_size}, {self.threads} threads")
            for record in self._setting(candidates, width, layers, batch_size):
                append(path, record)
                yield record

    def _setting(
        self, candidates: Sequence[_Candidate], width: int, layers: int, batch_size: int
    ) -> Iterator[Record]:
        batches = self._batches(batch_size)
        steps: dict[_Candidate, Step] = {}
        failed: dict[_Candidate, str] = {}
        flops: dict[_Candidate, int] = {}
        for candidate in candidates:
            try:
                step = _make_step(candidate, width, layers, batches, self.device)
                flops[candidate] = _count_flops(step)
                for _ in range(_WARM_UP):
                    step()
                steps[candidate] = step
            except Exception as error:  # a peer that fails is a line that says so
                failed[candidate] = f"{type(error).__name__}: {error}"
        times = self._take_turns(steps)
        reference = candidates[0]
        for candidate in candidates:
            cell = {
                "width": width,
                "layers": layers,
                "batch_size": batch_size,
                "threads": self.threads,
                "compiled": False,
                "engine": candidate.engine,
                "update_prob": candidate.update_prob,
            }
            metrics: dict[str, Any] = {}
            if candidate in times and reference in times:
                metrics = _figures(times[candidate], times[reference])
                if candidate.update_prob == 1:  # one step's count says nothing about a random one
                    metrics["ratio_arithmetic"] = flops[candidate] / flops[reference]
            yield {
                "schema": SCHEMA,
                "experiment": "bench/step",
                "tier": "custom",
                "method": candidate.method,
                "seed": 0,
                "cell": cell,
                "steps": len(times.get(candidate, ())),
                "batch_size": batch_size,
                "metrics": metrics,
                "time": {},
                "curve": [],
                "status": "ok" if metrics else "failed",
                "error": failed.get(candidate)
                or (None if metrics else "backpropagation could not be measured"),
                "config": {"optimizer": "Adam, fused", "rule": "linear M", "rounds": self.rounds},
                "env": describe(self.device),
            }

    def _batches(self, batch_size: int) -> list[tuple[Tensor, Tensor]]:
        train = load("mnist-10k").train.to(torch.device(self.device))
        if batch_size > len(train):
            raise ConfigError(f"batch size {batch_size}: expected 1 to {len(train)}")
        order = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))
        starts = [(k * batch_size) % (len(train) - batch_size + 1) for k in range(_NUM_BATCHES)]
        ids = [order[s : s + batch_size].to(train.y.device) for s in starts]
        return [(train.x[i], train.y[i]) for i in ids]

    def _take_turns(self, steps: dict[_Candidate, Step]) -> dict[_Candidate, list[float]]:
        """Return each candidate's milliseconds per step, one figure a round."""
        times: dict[_Candidate, list[float]] = {c: [] for c in steps}
        counts = {c: max(4, round(self.seconds / self._once(step))) for c, step in steps.items()}
        for _ in range(self.rounds):
            for candidate, step in steps.items():
                synchronize(self.device)
                start = time.perf_counter()
                for _ in range(counts[candidate]):
                    step()
                synchronize(self.device)
                times[candidate].append((time.perf_counter() - start) / counts[candidate] * 1e3)
        return times

    def _once(self, step: Step) -> float:
        start = time.perf_counter()
        for _ in range(3):
            step()
        synchronize(self.device)
        return (time.perf_counter() - start) / 3


def _figures(own: Sequence[float], reference: Sequence[float]) -> dict[str, Any]:
    ratios = [a / b for a, b in zip(own, reference, strict=True)]
    p10, median, p90 = (float(v) for v in np.percentile(own, (10, 50, 90)))
    low, middle, high = (float(v) for v in np.percentile(ratios, (10, 50, 90)))
    return {
        "step_ms_median": median,
        "step_ms_p10": p10,
        "step_ms_p90": p90,
        "ratio_to_backprop": middle,
        "ratio_to_backprop_p10": low,
        "ratio_to_backprop_p90": high,
    }


def _count_flops(step: Step) -> int:
    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops()


def _make_step(
    candidate: _Candidate, width: int, layers: int, batches: Sequence[tuple[Tensor, Tensor]], device: str
) -> Step:
    """Build one method's step; every call takes the next batch."""
    feed = itertools.cycle(batches)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = fully_connected(batches[0][0].shape[1:], 10, layers, width).to(device)
    criterion = nn.CrossEntropyLoss()

    def optimizer(parameters: Any) -> torch.optim.Optimizer:
        return torch.optim.Adam(parameters, 3e-4, fused=True)

    rule = method_named(candidate.method).rule
    if rule is None:
        return _hand_written(model, criterion, optimizer(model.parameters()), feed)
    net = decouple(model, cut_names(model), rule(RuleSettings(), 10), batches[0][0])
    if candidate.engine == "plain":
        trainer: Locked | InProcess = Locked(net, criterion, optimizer)
    else:
        generator = torch.Generator().manual_seed(0)
        trainer = InProcess(net, criterion, optimizer, update_prob=candidate.update_prob, generator=generator)
    return lambda: trainer.step(*next(feed))


def _hand_written(
    model: nn.Module,
    criterion: nn.Module,
    optimizer: torch.optim.Optimizer,
    feed: Iterator[tuple[Tensor, Tensor]],
) -> Step:
    """Return the loop that anybody would write: the 1.0 of every ratio."""

    def step() -> None:
        x, y = next(feed)
        optimizer.zero_grad()
        criterion(model(x), y).backward()
        optimizer.step()

    return step
