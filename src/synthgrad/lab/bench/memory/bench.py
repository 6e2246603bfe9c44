"""``bench memory``: bytes held for backward, and the process's peak, of one step.

Each line is measured in a process of its own, so that nothing is left of another. The peers are
backpropagation, and activation checkpointing in two forms: every layer a segment, and as many segments
as hold the least for a stack of equal layers.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint_sequential

from ....core import ConfigError, decouple
from ....engines import InProcess
from ....rules import SyntheticGradient
from ...tasks import cut_names, fully_connected, load
from ..base import Scope, Setting, blank_line
from . import lstm as bench_memory_lstm
from .probe import Memory, measured, probe

__all__ = ["METHODS", "MemoryBench"]

METHODS = ("backprop", "checkpointing", "in_process")

_DATA = "mnist-10k"


class MemoryBench:
    """Fully connected networks on embedded digits, Adam; in-process with cDNI, linear ``M`` at every cut."""

    name = "memory"
    about = "bytes held for backward, and peak memory: backprop, activation checkpointing, in-process"
    tiers = {
        "smoke": Scope((32,), (3, 5), (64,), METHODS, rounds=1, tier="smoke"),
        "quick": Scope((256,), (5, 9, 17, 33), (1024,), METHODS, rounds=3, threads=1, tier="quick"),
        "full": Scope((1024,), (5, 9, 17, 33), (2048,), METHODS, rounds=3, threads=1, tier="full"),
    }

    networks = {"fcn": tiers, "lstm": bench_memory_lstm.TIERS}

    def settings(self, scope: Scope) -> list[Setting]:
        """Return one setting for each width, depth, batch size and seed.

        Raises:
            ConfigError: if a method is unknown or a batch larger than the data.
        """
        if scope.arch == "lstm":
            return bench_memory_lstm.settings(scope)
        for method in scope.methods:
            if method not in METHODS:
                raise ConfigError(
                    f"method '{method}' is unknown to bench memory; accepted: {', '.join(METHODS)}"
                )
        if scope.learn or True in scope.compiled:
            raise ConfigError(
                "bench memory trains to no accuracy and compiles nothing; leave out --learn and --modes compiled"
            )
        if scope.precision != "float32":
            raise ConfigError(
                f"bench memory measures in float32 only, not in {scope.precision}; leave out --precision"
            )
        size = len(load(_DATA).train)
        for batch_size in scope.batch_sizes:
            if batch_size > size:
                raise ConfigError(f"batch size {batch_size}: expected 1 to {size}")
        return [
            self._setting(scope, width, layers, batch_size, seed)
            for seed, width, layers, batch_size in itertools.product(
                scope.seeds, scope.widths, scope.layers, scope.batch_sizes
            )
        ]

    def _setting(self, scope: Scope, width: int, layers: int, batch_size: int, seed: int) -> Setting:
        threads, device, rounds = scope.threads, scope.device, scope.rounds
        jobs = [
            _Job(method, width, layers, batch_size, segments, seed, threads, device, rounds, variant)
            for method, segments, variant in _forms(scope.methods, layers)
        ]
        lines = [
            blank_line(
                self.name, job.method, scope, seed, job.cell, {"optimizer": "Adam, fused", "rule": job.rule}
            )
            for job in jobs
        ]
        label = f"memory: {layers} layers × {width}, batch {batch_size}"
        return Setting(label, lines, partial(measured, jobs, lines, _observe, "backprop"))


@dataclass(frozen=True, slots=True)
class _Job:
    """What one process measures."""

    method: str
    width: int
    layers: int
    batch_size: int
    segments: int | None
    seed: int
    threads: int
    device: str
    rounds: int
    variant: str | None = None

    @property
    def cell(self) -> dict[str, Any]:
        names = ("width", "layers", "batch_size", "segments", "variant", "threads")
        return {name: getattr(self, name) for name in names}

    @property
    def rule(self) -> str | None:
        return "cdni, linear M" if self.method == "in_process" else None


def _forms(methods: Sequence[str], layers: int) -> Iterator[tuple[str, int | None, str | None]]:
    """Yield method, number of segments and its name for every line of a setting, the reference first."""
    for method in dict.fromkeys(("backprop", *methods)):
        if method != "checkpointing":
            yield method, None, None
            continue
        for segments, name in _segments(layers).items():
            yield method, segments, name


def _segments(layers: int) -> dict[int, str]:
    """Return numbers of checkpointed segments with their names: the one that holds the least, and every layer.

    Of a hidden layer two tensors are kept, of a segment its input. PyTorch runs the last segment, which
    takes what does not divide, without checkpointing; the others as long as they are run again.
    """
    hidden = layers - 1

    def held(segments: int) -> int:
        longest = hidden - (segments - 1) * (hidden // segments)
        return segments - 1 + 2 * longest

    return {hidden: "every layer", min(range(1, hidden + 1), key=held): "fewest bytes"}


def _observe(job: _Job) -> dict[str, Any]:
    """Measure in this process: bytes held in one step, and time and highest memory of others before it."""
    torch.set_num_threads(job.threads)
    device = torch.device(job.device)
    train = load(_DATA).train
    x, y = train.x[: job.batch_size].to(device), train.y[: job.batch_size].to(device)
    memory = Memory(job.device)
    torch.manual_seed(job.seed)
    model = fully_connected(x.shape[1:], 10, job.layers, job.width).to(device)
    step, tensors = _MAKERS[job.method](model, x, y, job)
    del model  # in-process trains a copy
    return probe(step, [x, y, *tensors], memory, job.rounds)


_Step = Callable[[], object]


def _adam(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, 3e-4, fused=True)


def _plain_step(model: nn.Module, forward: Callable[[], Tensor], y: Tensor) -> tuple[_Step, list[Tensor]]:
    optimizer = _adam(model.parameters())
    criterion = nn.CrossEntropyLoss()

    def step() -> None:
        optimizer.zero_grad()
        criterion(forward(), y).backward()
        optimizer.step()

    return step, [*model.parameters(), *model.buffers()]


def _backprop(model: nn.Sequential, x: Tensor, y: Tensor, job: _Job) -> tuple[_Step, list[Tensor]]:
    return _plain_step(model, lambda: model(x), y)


def _checkpointing(model: nn.Sequential, x: Tensor, y: Tensor, job: _Job) -> tuple[_Step, list[Tensor]]:
    """Hidden layers in segments; the form of PyTorch whose saved tensors can be counted from outside."""
    assert job.segments is not None
    hidden, output = model[:-1], model[-1]
    segments = job.segments
    x = x.detach().requires_grad_()  # that form wants an input with a gradient

    def forward() -> Tensor:
        x.grad = None
        return output(checkpoint_sequential(hidden, segments, x, use_reentrant=True))

    step, tensors = _plain_step(model, forward, y)
    return step, [*tensors, x]


def _in_process(model: nn.Sequential, x: Tensor, y: Tensor, job: _Job) -> tuple[_Step, list[Tensor]]:
    net = decouple(model, cut_names(model), SyntheticGradient(context=10), x[:2])
    trainer = InProcess(net, nn.CrossEntropyLoss(), _adam)
    return lambda: trainer.step(x, y), [*net.parameters(), *net.buffers()]


_MAKERS: dict[str, Callable[[nn.Sequential, Tensor, Tensor, _Job], tuple[_Step, list[Tensor]]]] = {
    "backprop": _backprop,
    "checkpointing": _checkpointing,
    "in_process": _in_process,
}
