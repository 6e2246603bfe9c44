"""Units of messages: from the criterion's reduced and scaled gradients to per-example ones and back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from torch import Tensor

from .errors import ConfigError

__all__ = ["LossScale", "Reduction", "Units"]

Reduction = Literal["mean", "sum"] | Callable[[Tensor], float]
LossScale = Callable[[], "float | Tensor"]


class Units:
    """Converts between the gradients that a training loop sees and per-example gradients.

    Messages carry the gradient of the loss of each example, so that what a rule learns does not
    shrink as the batch grows. The cut cannot guess how a criterion reduced its losses: it is told.

    Args:
        reduction: ``"mean"`` (the loss is divided by the batch size ``h.shape[0]``), ``"sum"``, or a
            callable that takes ``h`` and returns the divisor.
        loss_scale: callable that returns the factor by which the loss was multiplied before
            ``backward`` (a gradient scaler's scale, ``1 / accumulation_steps``); None for 1.
    """

    def __init__(self, reduction: Reduction = "mean", loss_scale: LossScale | None = None) -> None:
        if not callable(reduction) and reduction not in ("mean", "sum"):
            raise ConfigError(
                f"reduction={reduction!r}: expected 'mean', 'sum' or a callable(h) -> divisor; "
                "give the reduction of your criterion"
            )
        if loss_scale is not None and not callable(loss_scale):
            raise ConfigError(
                f"loss_scale={loss_scale!r}: expected a callable() -> factor, for example scaler.get_scale"
            )
        self.reduction: Reduction = reduction
        self.loss_scale = loss_scale

    def divisor(self, h: Tensor) -> float:
        """Return the number by which the criterion divided the sum of per-example losses."""
        if callable(self.reduction):
            return self.reduction(h)
        # An empty batch has no gradient to convert; 1 keeps the arithmetic finite.
        return max(h.shape[0], 1) if self.reduction == "mean" else 1

    def scale(self) -> float | Tensor:
        """Return the factor by which the loss was multiplied before ``backward``."""
        return 1.0 if self.loss_scale is None else self.loss_scale()

    def to_criterion(self, delta: Tensor, factor: float = 1.0, *, like: Tensor | None = None) -> Tensor:
        """Return a message, ``(B, ...)`` in per-example units, as the gradient that the criterion would send.

        Args:
            delta: the message.
            factor: by which it is multiplied besides.
            like: one message, where ``delta`` is a row of several.
        """
        return delta * (factor * self.scale() / self.divisor(delta if like is None else like))

    def to_example(self, gradient: Tensor, *, like: Tensor | None = None) -> Tensor:
        """Return a gradient that the criterion has sent, ``(B, ...)``, in per-example units.

        Args:
            gradient: from the criterion.
            like: one message, where ``gradient`` is a row of several.
        """
        return gradient * (self.divisor(gradient if like is None else like) / self.scale())

    def to_example_(self, gradient: Tensor) -> Tensor:
        """Do the same in place."""
        return gradient.mul_(self.divisor(gradient) / self.scale())

    def reduce(self, losses: Tensor) -> Tensor:
        """Return the losses of examples, ``(..., B)``, as the criterion would reduce them, unscaled: ``(...)``."""
        one = losses if losses.ndim == 1 else losses.flatten(0, -2)[0]
        return losses.sum(-1) / self.divisor(one)
