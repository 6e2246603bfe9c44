"""``bench memory``: what backpropagation, activation checkpointing and the in-process engine hold, over depth.

Checkpointing is measured in two forms: every layer a segment, and as many segments as hold the least for a stack of
equal layers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint_sequential

from ....core import decouple
from ....engines import InProcess
from ....rules import SyntheticGradient
from ...tasks import cut_names, fully_connected, load
from ..base import Size
from ..batches import CLASSES, DATA, check_batch_sizes
from ..declarations import DENSE_METHODS, MEMORY, MemoryScope
from .probe import Memory, OwnProcessBench, probe

__all__ = ["BENCHMARK", "DenseBench", "DenseCase", "observe"]


@dataclass(frozen=True, slots=True)
class DenseCase:
    """What a line measures.

    Attributes:
        method: ``backprop``, ``checkpointing`` or ``in_process``.
        segments: that are checkpointed; None for other methods.
        variant: what distinguishes this number of segments.
    """

    method: str
    segments: int | None = None
    variant: str | None = None


def observe(scope: MemoryScope, size: Size, case: DenseCase) -> dict[str, Any]:
    """Measure in this process: bytes held in one step, and time and highest memory of others before it."""
    torch.set_num_threads(scope.threads)
    train = load(DATA).train
    x, y = (part[: size.batch_size].to(scope.device) for part in (train.x, train.y))
    memory = Memory(scope.device)
    torch.manual_seed(size.seed)
    model = fully_connected(x.shape[1:], CLASSES, size.layers, size.width).to(scope.device)
    step, tensors = MAKERS[case.method](model, x, y, case.segments)
    del model  # in-process trains a copy
    return probe(step, [x, y, *tensors], memory, scope.rounds)


class DenseBench(OwnProcessBench[MemoryScope, Size, DenseCase]):
    """Fully connected networks on embedded digits, Adam; in-process with cDNI, linear ``M`` at every cut."""

    declared = MEMORY
    reference = "backprop"
    observe = staticmethod(observe)

    def methods(self, scope: MemoryScope) -> Sequence[str]:
        return DENSE_METHODS

    def check(self, scope: MemoryScope) -> None:
        check_batch_sizes(scope.batch_sizes)

    def cases(self, scope: MemoryScope, size: Size) -> Sequence[DenseCase]:
        found: list[DenseCase] = []
        for method in dict.fromkeys((self.reference, *scope.methods)):
            if method == "checkpointing":
                found += [DenseCase(method, *form) for form in segments_of(size.layers).items()]
            else:
                found.append(DenseCase(method))
        return found

    def cell(self, scope: MemoryScope, size: Size, case: DenseCase) -> Mapping[str, Any]:
        return {
            "width": size.width,
            "layers": size.layers,
            "batch_size": size.batch_size,
            "segments": case.segments,
            "variant": case.variant,
            "threads": scope.threads,
        }

    def config(self, scope: MemoryScope, size: Size, case: DenseCase) -> Mapping[str, Any]:
        return {"rule": "cdni, linear M" if case.method == "in_process" else None}

    def label(self, scope: MemoryScope, size: Size) -> str:
        return f"{size.layers} layers × {size.width}, batch {size.batch_size}"


def segments_of(layers: int) -> dict[int, str]:
    """Return numbers of checkpointed segments with their names: the one that holds the least, and every layer.

    Of a hidden layer two tensors are kept, of a segment its input. PyTorch runs the last segment, which
    takes what does not divide, without checkpointing; the others as long as they are run again.
    """
    hidden = layers - 1

    def held(segments: int) -> int:
        longest = hidden - (segments - 1) * (hidden // segments)
        return segments - 1 + 2 * longest

    return {hidden: "every layer", min(range(1, hidden + 1), key=held): "fewest bytes"}


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


def _backprop(model: nn.Sequential, x: Tensor, y: Tensor, segments: int | None) -> tuple[_Step, list[Tensor]]:
    return _plain_step(model, lambda: model(x), y)


def _checkpointing(
    model: nn.Sequential, x: Tensor, y: Tensor, segments: int | None
) -> tuple[_Step, list[Tensor]]:
    """Run hidden layers in segments, in the form of PyTorch whose saved tensors can be counted from outside."""
    assert segments is not None
    hidden, output = model[:-1], model[-1]
    x = x.detach().requires_grad_()  # that form wants an input with a gradient

    def forward() -> Tensor:
        x.grad = None
        return output(checkpoint_sequential(hidden, segments, x, use_reentrant=True))

    step, tensors = _plain_step(model, forward, y)
    return step, [*tensors, x]


def _in_process(
    model: nn.Sequential, x: Tensor, y: Tensor, segments: int | None
) -> tuple[_Step, list[Tensor]]:
    net = decouple(model, cut_names(model), SyntheticGradient(context=CLASSES, learned_table=True), x[:2])
    trainer = InProcess(net, nn.CrossEntropyLoss(), _adam)
    return lambda: trainer.step(x, y), [*net.parameters(), *net.buffers()]


#: By method: returns a step, and the tensors that live all the time.
MAKERS: Mapping[str, Callable[[nn.Sequential, Tensor, Tensor, int | None], tuple[_Step, list[Tensor]]]] = {
    "backprop": _backprop,
    "checkpointing": _checkpointing,
    "in_process": _in_process,
}


BENCHMARK = DenseBench()
