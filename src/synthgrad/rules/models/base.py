"""What all synthetic gradient models have in common."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from ...core import ShapeError, Site
from ..context_input import IGNORED, check_context

__all__ = ["Activation", "GradientModel", "ModelFactory", "set_to_zero"]

#: Makes the activation of a hidden layer.
Activation = Callable[[], nn.Module]


class GradientModel(nn.Module):
    """Base of the models: knows the width of its context and refuses what does not fit.

    Args:
        width: number of context features (classes), 0 for none.
        name: name of the interface, for errors.

    Attributes:
        receiver: features of the receiving module's state that ``forward`` takes as a third argument, 0 for none.
        ignore_index: the class index that means no label; the context of such an example is zero.
        has_offset: whether a part of ``M`` learns in `correct`, and not from gradients.
    """

    has_offset = False

    def __init__(self, width: int, name: str) -> None:
        super().__init__()
        self.width = width
        self.name = name
        self.receiver = 0
        self.ignore_index = IGNORED

    def check(self, h: Tensor, c: Tensor | None) -> None:
        """Raise `ShapeError` or `ContextError` if ``M(h, c)`` cannot be computed."""
        if self.width:
            check_context(c, self.width, h, self.name)

    def learned(self, h: Tensor, c: Tensor | None = None, s: Tensor | None = None) -> Tensor:
        """Return what optimizers train of ``M(h, c)``, shaped like ``h``: all of it, unless there is an `offset`."""
        return self(h, c) if s is None else self(h, c, s)

    def offset(self, h: Tensor, c: Tensor | None) -> Tensor | None:
        """Return what ``M(h, c)`` adds to `learned`, shaped so that it can be added, without a graph; None for nothing."""
        return None

    def correct(self, error: Tensor, c: Tensor | None) -> Tensor:
        """Let the `offset` learn from the error of a batch; return the error that is left.

        Args:
            error: ``M(h, c)`` minus the message, ``(B, ...)``, detached.
            c: the context.
        """
        return error

    def _refuse(self, h: Tensor, expected: str) -> None:
        raise ShapeError(
            f"interface '{self.name}': got a message of shape {tuple(h.shape)}, expected {expected} as in "
            "the example that decouple was given"
        )


ModelFactory = Callable[[Site, int], GradientModel]


def set_to_zero(layer: nn.Module) -> None:
    """Set the parameters of a last layer to zero."""
    for p in layer.parameters():
        nn.init.zeros_(p)
