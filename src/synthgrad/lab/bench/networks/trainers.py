"""A network of the zoo, trained by backpropagation and by the engines, each from the same weights on the same batches.

With the true gradient as the rule nothing may differ but rounding. The layer-parallel engine cannot wait for the true
gradient: it is held to the in-process engine with the lags that it has by itself, with synthetic gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ....core import Decoupled, Rule, decouple, propose_cuts
from ....engines import InProcess, Lag, LayerParallel, Stages
from ....rules import SyntheticGradient, TrueGradient
from .entry import SPREAD, Batch, Entry, Inputs
from .exactness import FaultyGradient, tensors

__all__ = [
    "StepCount",
    "Comparison",
    "backprop",
    "control",
    "cuts_of",
    "num_processes",
    "sgd",
    "sizes",
    "trained",
]

#: How long a stage waits for the other, in seconds.
_TIMEOUT_S = 30.0

_SEED = 7  # of dropout, and of the layer-parallel engine's rules


class StepCount:
    """How many steps have been made, for those who ask after an error; None before the engine stands."""

    def __init__(self) -> None:
        self.steps: int | None = None

    def over(self, batches: Sequence[Batch]) -> Iterator[Batch]:
        """Yield the batches, and count."""
        for k, batch in enumerate(batches):
            self.steps = k
            yield batch
        self.steps = len(batches)


@dataclass(frozen=True, slots=True)
class Comparison:
    """What training left, and what it is to be compared with.

    Attributes:
        found, expected: tensors by name.
        net: the decoupled network.
    """

    found: dict[str, Tensor]
    expected: dict[str, Tensor]
    net: Decoupled


def sizes(steps: int, largest: int) -> tuple[int, ...]:
    """Return the size of each batch: whole ones, with smaller ones between and at the end."""
    eighths = (8, 8, 5, 8, 3)
    return tuple(max(2, largest * eighths[k % len(eighths)] // 8) for k in range(steps))


def sgd(parameters: Any) -> torch.optim.Optimizer:
    """Return the optimizer of every network. Adam would make much of gradients that are zero but for rounding."""
    return torch.optim.SGD(parameters, 0.05, momentum=0.9)


def cuts_of(entry: Entry, model: nn.Module, example: Inputs, *, middle: bool = False) -> list[str]:
    """Return the cuts of an entry: its own, else those that are proposed; or the one in the middle of them.

    Raises:
        CutError: if it names none and none can be proposed.
    """
    names = list(entry.cuts or propose_cuts(model, example))
    return [names[(len(names) - 1) // 2]] if middle else names


def _decoupled(
    entry: Entry, rule: Rule, batches: Sequence[Batch], dropout: float, seed: int, *, middle: bool = False
) -> Decoupled:
    model, example = entry.model(seed, dropout), batches[0][0]
    return decouple(model, cuts_of(entry, model, example, middle=middle), rule, example)


def _loop(model: nn.Module, entry: Entry, batches: Sequence[Batch], count: StepCount) -> None:
    """Train in an ordinary loop: a plain network by backpropagation, a decoupled one through its cuts."""
    optimizer = sgd(model.parameters())
    torch.manual_seed(_SEED)
    for inputs, y in count.over(batches):
        optimizer.zero_grad()
        entry.criterion(_called(model, inputs), y).backward()
        optimizer.step()


def _called(model: nn.Module, inputs: Inputs) -> Any:
    if isinstance(inputs, Tensor):
        return model(inputs)
    return model(*inputs) if isinstance(inputs, tuple) else model(**inputs)


def backprop(
    entry: Entry, batches: Sequence[Batch], dropout: float = 0.0, seed: int = 0
) -> dict[str, Tensor]:
    """Return the parameters and buffers that plain backpropagation gives."""
    model = entry.model(seed, dropout)
    _loop(model, entry, batches, StepCount())
    return tensors(model)


def _plain(net: Decoupled, entry: Entry, batches: Sequence[Batch], count: StepCount, rank: int) -> None:
    _loop(net, entry, batches, count)


def _in_process(
    net: Decoupled,
    entry: Entry,
    batches: Sequence[Batch],
    count: StepCount,
    rank: int,
    **options: Any,
) -> None:
    trainer = InProcess(net, entry.criterion, sgd, **options)
    torch.manual_seed(_SEED)
    for inputs, y in count.over(batches):
        trainer.step(inputs, y)


def _stages(net: Decoupled, entry: Entry, batches: Sequence[Batch], count: StepCount, rank: int) -> None:
    with Stages(net, entry.criterion, sgd, window=0, deterministic=True, timeout_s=_TIMEOUT_S) as trainer:
        for inputs, y in count.over(batches):
            trainer.step(inputs if rank == 0 else None, y)
        trainer.gather()


_Train = Callable[[Decoupled, Entry, Sequence[Batch], StepCount, int], None]

_TRAIN: dict[str, _Train] = {"plain": _plain, "in_process": _in_process, "stages": _stages}


def num_processes(method: str) -> int:
    """Return how many processes an engine takes, each of which calls the functions of this module."""
    return 2 if method == "stages" else 1


def trained(
    entry: Entry,
    method: str,
    batches: Sequence[Batch],
    dropout: float,
    count: StepCount,
    seed: int = 0,
    rank: int = 0,
) -> Comparison:
    """Train by an engine with the true gradient, and by backpropagation."""
    if method == "layer_parallel":
        return _layer_parallel(entry, batches, dropout, count, seed)
    net = _decoupled(entry, TrueGradient(), batches, dropout, seed, middle=method == "stages")
    _TRAIN[method](net, entry, batches, count, rank)
    return Comparison(tensors(net.model), backprop(entry, batches, dropout, seed), net)


def control(
    entry: Entry, method: str, batches: Sequence[Batch], seed: int = 0, rank: int = 0
) -> dict[str, Tensor]:
    """Train with gradients that are a little too large at every cut, which a comparison must notice."""
    net = _decoupled(entry, FaultyGradient(), batches, 0.0, seed, middle=method == "stages")
    _TRAIN[method](net, entry, batches, StepCount(), rank)
    return tensors(net.model)


def _layer_parallel(
    entry: Entry, batches: Sequence[Batch], dropout: float, count: StepCount, seed: int
) -> Comparison:
    """Train by the layer-parallel engine, and by the in-process one with the same lags."""

    def with_rules() -> Decoupled:
        net = _decoupled(entry, SyntheticGradient(), batches, dropout, seed)
        generator = torch.Generator().manual_seed(_SEED)
        with torch.no_grad():
            for p in net.rules.parameters():  # synthetic gradients start at zero
                p.add_(torch.randn(p.shape, generator=generator, dtype=p.dtype), alpha=SPREAD)
        return net

    net, other = with_rules(), with_rules()
    options = {"lr": 1e-3}
    trainer = LayerParallel(net, entry.criterion, sgd, rule_options=options)
    for inputs, y in count.over(batches):
        trainer.step(inputs, y)  # pyright: ignore[reportArgumentType] - it refuses what it cannot take
    lags = {name: Lag(1) for name in other.interfaces}
    _in_process(other, entry, batches, StepCount(), 0, lags=lags, rule_options=options)
    return Comparison(tensors(net), tensors(other), net)
