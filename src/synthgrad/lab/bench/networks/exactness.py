"""How far trained tensors are from what they must be, tensor by tensor."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ....core import Info, Message
from ....rules import TrueGradient

__all__ = ["EXACT", "FAULT", "Deviation", "FaultyGradient", "compare", "tensors"]

#: The largest relative deviation that rounding may have.
EXACT = 1e-9

#: By how much gradients are wrong in a control, which shows that a comparison sees it.
FAULT = 1e-6


@dataclass(frozen=True, slots=True)
class Deviation:
    """The tensor that deviates most.

    Attributes:
        value: ``max |found - expected| / max |expected|`` over the tensor; without the quotient where that is zero,
            infinite where something is missing, of another shape, not finite, or a whole number and not equal.
        tensor: its name.
    """

    value: float
    tensor: str

    @property
    def is_exact(self) -> bool:
        return self.value <= EXACT


class FaultyGradient(TrueGradient):
    """The true gradient, too large by `FAULT`."""

    def accept(self, message: Message, info: Info) -> Tensor:
        return message.gradient * (1 + FAULT)


def tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return copies of all parameters and buffers, those that are not saved included."""
    return {n: t.detach().clone() for n, t in (*model.named_parameters(), *model.named_buffers())}


def compare(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> Deviation:
    """Return the largest relative deviation over all tensors of either side."""
    worst = Deviation(0.0, "")
    for name in dict.fromkeys((*expected, *found)):
        value = _deviation(found.get(name), expected.get(name))
        if value > worst.value or not worst.tensor:
            worst = Deviation(value, name)
    return worst


def _deviation(found: Tensor | None, expected: Tensor | None) -> float:
    if found is None or expected is None or found.shape != expected.shape:
        return math.inf
    if not expected.is_floating_point():
        return 0.0 if torch.equal(found, expected) else math.inf
    if not expected.numel():
        return 0.0
    largest = float(expected.abs().max())
    value = float((found - expected).abs().max()) / (largest or 1.0)
    return value if math.isfinite(value) else math.inf
