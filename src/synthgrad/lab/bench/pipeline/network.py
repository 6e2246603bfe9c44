"""What all methods train: digits by a fully connected network, or tokens by a GPT, and how both are divided."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ....core import Rule
from ....engines import OptimizerFactory
from ....rules import InterlockedLoss, LateCorrection, LocalLoss, SyntheticGradient, TrueGradient, heads
from ....rules.models import class_means
from ...tasks import fully_connected
from ...tasks.gpt import gpt
from ...training.optimizers import optimizer_factory
from ..batches import CLASSES, Batches, digits
from .cases import RANK

__all__ = ["Size", "Workload", "optimizers_of", "workload_of"]

_VOCABULARY = 65  # characters of Shakespeare's plays
_NUM_BATCHES = 16


@dataclass(frozen=True, slots=True)
class Size:
    """What is trained.

    Attributes:
        width, layers, batch_size: of the network (blocks of a GPT; else layers, the output layer included), and of all
            processes' batch together.
        stages: number of processes.
        threads: threads of each process.
        seed: seed of weights and data.
        arch: ``fcn`` or ``gpt``.
        heads, context: of a GPT.
        precision: ``float32``, or ``bfloat16`` under autocast.
        optimizer: name of the optimizer that all methods have.
        cuts: ``equal`` for as many layers in each process, ``planned`` for where the planner cuts.
        slow: how many times as long our stages take, by sleeping: a factor for each; none if all are as fast as they are.
    """

    width: int
    layers: int
    batch_size: int
    stages: int
    threads: int
    seed: int
    arch: str = "fcn"
    heads: int = 4
    context: int = 64
    precision: str = "float32"
    optimizer: str = "adam"
    cuts: str = "equal"
    slow: tuple[float, ...] = ()


class Workload(Protocol):
    """What is trained, in the words of all methods."""

    @property
    def size(self) -> Size:
        """What is trained."""
        ...

    def model(self) -> nn.Sequential:
        """Return the whole network, with the same weights in every process."""
        ...

    def batches(self) -> Batches:
        """Return the batches that are trained on in turn, the same in every process."""
        ...

    def example(self, rows: int) -> Tensor:
        """Return inputs of some rows, whose values mean nothing."""
        ...

    def at_end(self, part: int, parts: int, rows: int) -> Tensor:
        """Return what a part of the network makes of some rows; its values mean nothing."""
        ...

    def criterion(self) -> Any:
        """Return the criterion: takes output and target, returns the mean loss."""
        ...

    def rule(self, name: str) -> tuple[Rule, str]:
        """Return a rule for the ends of stages, and the reduction that goes with the criterion."""
        ...

    def arithmetic(self) -> AbstractContextManager[Any]:
        """Return a context in which a step computes in the precision of the size."""
        ...


def workload_of(size: Size) -> Workload:
    """Return what a size trains."""
    return _Tokens(size) if size.arch == "gpt" else _Digits(size)


@dataclass(frozen=True, slots=True)
class _Digits:
    size: Size

    def model(self) -> nn.Sequential:
        with torch.random.fork_rng():
            torch.manual_seed(self.size.seed)
            return fully_connected((1, 28, 28), CLASSES, self.size.layers, self.size.width)

    def batches(self) -> Batches:
        return digits(self.size.batch_size, self.size.seed, "cpu")

    def example(self, rows: int) -> Tensor:
        return torch.empty(rows, 1, 28, 28)

    def at_end(self, part: int, parts: int, rows: int) -> Tensor:
        return torch.empty(rows, CLASSES if part + 1 == parts else self.size.width)

    def criterion(self) -> Any:
        return nn.CrossEntropyLoss()

    def rule(self, name: str) -> tuple[Rule, str]:
        table = SyntheticGradient(context=CLASSES, learned_table=True)
        return table if name == "cdni" else _rule(name, CLASSES, self.size.width), "mean"

    def arithmetic(self) -> AbstractContextManager[Any]:
        return _in_precision(self.size.precision)


@dataclass(frozen=True, slots=True)
class _Tokens:
    """Tokens are drawn at random: what a step costs does not depend on them."""

    size: Size

    def model(self) -> nn.Sequential:
        size = self.size
        with torch.random.fork_rng():
            torch.manual_seed(size.seed)
            return gpt(
                _VOCABULARY, width=size.width, blocks=size.layers, heads=size.heads, context=size.context
            )

    def batches(self) -> Batches:
        drawn = torch.Generator().manual_seed(self.size.seed)
        shape = (self.size.batch_size, self.size.context + 1)
        windows = [torch.randint(_VOCABULARY, shape, generator=drawn) for _ in range(_NUM_BATCHES)]
        return [(w[:, :-1].contiguous(), w[:, 1:].contiguous()) for w in windows]

    def example(self, rows: int) -> Tensor:
        return torch.zeros(rows, self.size.context, dtype=torch.int64)

    def at_end(self, part: int, parts: int, rows: int) -> Tensor:
        return torch.empty(rows, self.size.context, _VOCABULARY if part + 1 == parts else self.size.width)

    def criterion(self) -> Any:
        return _token_loss

    def rule(self, name: str) -> tuple[Rule, str]:
        head = heads.token_head(1 if name == "interlocked" else 0)
        return _rule(name, _VOCABULARY, self.size.width, head), "tokens"

    def arithmetic(self) -> AbstractContextManager[Any]:
        return _in_precision(self.size.precision)


def _rule(name: str, classes: int, width: int, head: heads.HeadFactory | None = None) -> Rule:
    """Return a rule by its name in a case; ``head`` is that of rules with a local loss, ``width`` that of messages."""
    if name == "cdni":
        return SyntheticGradient(context=classes)
    if name == "low_rank":
        return SyntheticGradient(context=classes, model=class_means(rank=min(RANK, width)))
    if name == "delayed":
        return TrueGradient()
    if name == "interlocked":
        return InterlockedLoss(classes, head)
    local = LocalLoss(classes, head)
    return LateCorrection(local) if name == "late_correction" else local


def optimizers_of(size: Size, net: nn.Module, lr: float, *, late: bool = False) -> OptimizerFactory:
    """Return what makes the optimizers of some parameters of a network; gradients that come late have error feedback."""
    return optimizer_factory(size.optimizer, lr, net, error_feedback=late)


def _token_loss(scores: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(scores.flatten(0, 1).float(), targets.flatten())


def _in_precision(precision: str) -> AbstractContextManager[Any]:
    """Return autocast for the steps of a method; the weights that it casts are cast once a step."""
    return nullcontext() if precision == "float32" else torch.autocast("cpu", torch.bfloat16)
