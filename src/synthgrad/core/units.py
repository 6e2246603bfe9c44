"""Units of messages: from the criterion's reduced and scaled gradients to per-example ones and back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from .errors import ConfigError

__all__ = ["LossScale", "Reduction", "Units"]

Reduction = Literal["mean", "sum", "tokens", "next_tokens"] | Callable[[Tensor], float]

#: The label that losses of tokens leave out.
_IGNORED = -100
LossScale = Callable[[], "float | Tensor"]


class Units:
    """Converts between the gradients that a training loop sees and per-example gradients.

    Messages carry the gradient of the loss of each example, so that what a rule learns does not
    shrink as the batch grows. The cut cannot guess how a criterion reduced its losses: it is told.

    Args:
        reduction: ``"mean"`` (the loss is divided by the batch size ``h.shape[0]``), ``"sum"``, ``"tokens"`` (by the
            number of labels that are not -100), ``"next_tokens"`` (the same without the first label of each sequence,
            as in losses of causal language models, which shift them), or a callable that takes ``h`` and returns the
            divisor. The loss of an example is then the sum over its tokens. Where a model is given
            ``num_items_in_batch``, as by the trainer of transformers, that is the divisor: it counts the tokens of all
            the batches that are accumulated.
        loss_scale: callable that returns the factor by which the loss was multiplied before
            ``backward`` (a gradient scaler's scale, ``1 / accumulation_steps``); None for 1.
    """

    def __init__(self, reduction: Reduction = "mean", loss_scale: LossScale | None = None) -> None:
        if not callable(reduction) and reduction not in ("mean", "sum", "tokens", "next_tokens"):
            raise ConfigError(
                f"reduction={reduction!r}: expected 'mean', 'sum', 'tokens', 'next_tokens' or a callable(h) -> divisor; "
                "give the reduction of your criterion"
            )
        if loss_scale is not None and not callable(loss_scale):
            raise ConfigError(
                f"loss_scale={loss_scale!r}: expected a callable() -> factor, for example scaler.get_scale"
            )
        self.reduction: Reduction = reduction
        self.loss_scale = loss_scale

    @property
    def counts_tokens(self) -> bool:
        """Does the divisor depend on the labels of the batch?"""
        return self.reduction in ("tokens", "next_tokens")

    def of_batch(self, given: Mapping[str, Any], context: Tensor | None) -> Units:
        """Return the units of one batch: these, or, where tokens are counted, with their number in it.

        Args:
            given: keyword arguments of the model, among them ``labels``, ``(B, T)``, and perhaps ``num_items_in_batch``.
            context: of the rules, which stands for labels that the model is not given.

        Raises:
            ConfigError: if there are no labels to count.
        """
        if not self.counts_tokens:
            return self
        count: Any = given.get("num_items_in_batch")  # a number, or a tensor of one, for which nobody waits
        if count is None:
            labels = given.get("labels", context)
            if not isinstance(labels, Tensor) or labels.is_floating_point() or labels.ndim < 2:
                raise ConfigError(
                    f"reduction={self.reduction!r} counts the labels (B, T) of a batch, and this one has none; give the "
                    "model labels=, or the rules context=, or decouple with a callable as reduction"
                )
            labels = labels[..., 1:] if self.reduction == "next_tokens" else labels
            count = (labels != _IGNORED).sum().clamp(min=1)
        if isinstance(
            count, Tensor
        ):  # one over a whole number would be rounded to float32; Metal knows nothing wider
            count = count.to(torch.float32 if count.device.type == "mps" else torch.float64)
        return Units(lambda h: count, self.loss_scale)

    def divisor(self, h: Tensor) -> float:
        """Return the number by which the criterion divided the sum of per-example losses.

        Raises:
            ConfigError: if it counts the tokens of a batch, and these are those of no batch.
        """
        if callable(self.reduction):
            return self.reduction(h)
        if self.counts_tokens:
            raise ConfigError(
                f"reduction={self.reduction!r} counts labels that the plain loop alone knows; use that, or in an engine "
                "reduction='mean' with the mean over tokens of each example, or a callable"
            )
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
