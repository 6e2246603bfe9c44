"""Units of messages: from the criterion's reduced and scaled gradients to per-example ones and back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeGuard

import torch
from torch import Tensor

from .errors import ConfigError, ContextError, ShapeError
from .given import brief

__all__ = ["LossScale", "Reduction", "Units"]

Reduction = Literal["mean", "sum", "tokens", "next_tokens"] | Callable[[Tensor], float]
LossScale = Callable[[], "float | Tensor"]


class Units:
    """Converts between the gradients that a training loop sees and per-example gradients.

    Messages carry the gradient of the loss of each example, so that what a rule learns does not
    shrink as the batch grows. The cut cannot guess how a criterion reduced its losses: it is told.

    Where tokens are counted, the loss of an example is the *mean* over its ``n_b`` tokens that have a label, and the
    criterion the mean over all ``N`` of the batch. So example ``b`` has the share ``n_b / N`` of the criterion, and its
    row of the criterion's gradient is that share of its row of the message. An example without any label has a share of
    zero, and its rows are zero in both units. The shares are those of one batch, see `of_batch`.

    Args:
        reduction: ``"mean"`` (the loss is divided by the batch size ``h.shape[0]``), ``"sum"``, ``"tokens"`` (the mean
            over the labels ``(B, T)`` that are not ignored), ``"next_tokens"`` (the same without the first label of each
            sequence, as in losses of causal language models, which shift them), or a callable that takes ``h`` and
            returns the divisor of the sum over examples.
        loss_scale: callable that returns the factor by which the loss was multiplied before
            ``backward`` (a gradient scaler's scale, ``1 / accumulation_steps``); None for 1.
        ignore_index: the label that means none, where tokens are counted.
        shifted_context: do rules take the next token of each position as context? Then labels that a causal model shifts
            itself are no context for them.

    Attributes:
        shares: of the examples of one batch in the criterion, ``(B,)`` or with leading dimensions that stand for several
            messages, float64; None where the reduction counts no tokens, or no batch is known.

    Raises:
        ConfigError: if a setting is out of its range.
    """

    def __init__(
        self,
        reduction: Reduction = "mean",
        loss_scale: LossScale | None = None,
        *,
        ignore_index: int = -100,
        shifted_context: bool = False,
    ) -> None:
        if not callable(reduction) and reduction not in ("mean", "sum", "tokens", "next_tokens"):
            raise ConfigError(
                f"reduction={reduction!r}: expected 'mean', 'sum', 'tokens', 'next_tokens' or a callable(h) -> divisor; "
                "give the reduction of your criterion"
            )
        if loss_scale is not None and not callable(loss_scale):
            raise ConfigError(
                f"loss_scale={loss_scale!r}: expected a callable() -> factor, for example scaler.get_scale"
            )
        if isinstance(ignore_index, bool) or not isinstance(ignore_index, int):
            raise ConfigError(
                f"ignore_index={brief(ignore_index)}: expected the label that means none, as an int"
            )
        self.reduction: Reduction = reduction
        self.loss_scale = loss_scale
        self.ignore_index = ignore_index
        self.shifted_context = shifted_context
        self.shares: Tensor | None = None

    @property
    def counts_tokens(self) -> bool:
        """Does the criterion weigh examples by the number of their labels?"""
        return self.reduction in ("tokens", "next_tokens")

    def refuse_tokens(self, why: str) -> None:
        """Refuse to count tokens, in an engine whose messages are not about one batch.

        Args:
            why: they are not, for the error.

        Raises:
            ConfigError: if tokens are counted.
        """
        if self.counts_tokens:
            raise ConfigError(
                f"reduction={self.reduction!r} weighs the sequences of a batch by the number of their labels, and {why}; "
                "give a criterion that sums over steps and divides by the number of sequences, such as "
                "F.cross_entropy(..., reduction='sum') / B, and reduction='mean'"
            )

    # -- of one batch ---------------------------------------------------------------------------------

    def shares_of(
        self, given: Mapping[str, Any], context: Tensor | None, target: Any = None
    ) -> Tensor | None:
        """Return the share of each example of a batch in the criterion, ``(B,)``; None where no tokens are counted.

        They are ``n_b / N``, where ``N`` is the number of labels of the batch. If the model is given
        ``num_items_in_batch``, as by the trainer of transformers, that is ``N``: it counts the labels of all batches that
        are accumulated, and the shares do not sum to one. If it is given that and no labels, because the trainer smooths
        them, every token of ``input_ids`` has one that ``attention_mask`` does not hide.

        Args:
            given: keyword arguments of the model, among them perhaps ``labels``, ``(B, T)``, and
                ``num_items_in_batch``.
            context: of the rules, which stands for labels that the model is not given.
            target: of the criterion, where an engine knows it. It stands for the context where that holds no labels, or
                has the same shape.

        Raises:
            ContextError: if there are no labels to count, they are not shifted for rules that need that, or
                ``num_items_in_batch`` is not above zero.
        """
        if not self.counts_tokens:
            return None
        total: Any = given.get("num_items_in_batch")  # a number, or a tensor of one, for which nobody waits
        labels = self.labels_of(given, context, target)
        if not _are_labels(labels):
            raise ContextError(
                f"reduction={self.reduction!r} counts the labels of a batch, class indices (B, T), and got "
                f"{'none' if labels is None else _described(labels)}; give the model labels=, or the rules context=, or "
                "decouple with reduction='mean' and a criterion that is a mean over examples"
            )
        if labels is context and self.shifted_context and self.reduction == "next_tokens":
            raise ContextError(
                "the rules got as context the labels that the loss shifts by one, and learn to say the token at each "
                "position instead of the next; give labels to the model (in an engine, as y), and the rules "
                f"context=F.pad(labels[:, 1:], (0, 1), value={self.ignore_index})"
            )
        own = (self.counted_in(labels) != self.ignore_index).flatten(1).sum(1)  # (B,)
        if total is None:
            total = own.sum().clamp(min=1)
        elif not torch.compiler.is_compiling() and not _is_above_zero(total):
            raise ContextError(
                f"got num_items_in_batch={float(total):g}, by which the loss is divided, expected the number of labels in "
                "the batches of an update; leave out batches whose labels are all ignored"
            )
        # Not float32, which would round shares of float64 messages; Metal knows nothing wider.
        return own.to(torch.float32 if own.device.type == "mps" else torch.float64) / total

    def counted_in(self, labels: Tensor) -> Tensor:
        """Return the labels that the criterion compares with scores: all, or all but the first of each sequence."""
        return labels[..., 1:] if self.reduction == "next_tokens" else labels

    def labels_of(self, given: Mapping[str, Any], context: Tensor | None, target: Any = None) -> Any:
        """Return the labels of a batch, or what stands there in place of any; see `shares_of`."""
        labels = given.get("labels")
        if labels is not None:
            return labels
        if _are_labels(target) and (not _are_labels(context) or context.shape == target.shape):
            return target
        ids = given.get("input_ids")
        if _are_labels(context) or given.get("num_items_in_batch") is None or not _are_labels(ids):
            return context
        # The trainer of transformers that smooths labels keeps them to itself: all tokens but padding have one.
        mask = given.get("attention_mask")
        return ids if mask is None else ids.masked_fill(mask == 0, self.ignore_index)

    def with_shares(self, shares: Tensor | None) -> Units:
        """Return the units of one batch, whose examples have these shares in the criterion."""
        if shares is None:
            return self
        found = Units(self.reduction, self.loss_scale, ignore_index=self.ignore_index)
        found.shares = shares
        return found

    def of_batch(self, given: Mapping[str, Any], context: Tensor | None, target: Any = None) -> Units:
        """Return the units of one batch: these, or, where tokens are counted, with the shares of its examples.

        See `shares_of`.
        """
        return self.with_shares(self.shares_of(given, context, target))

    def unscaled(self) -> Units:
        """Return the same units for a loss that is not multiplied before ``backward``."""
        return Units(self.reduction, ignore_index=self.ignore_index).with_shares(self.shares)

    def check_rows(self, h: Tensor, name: str) -> None:
        """Refuse a message that has another number of rows than the batch has examples.

        Args:
            h: the message, ``(B, ...)``.
            name: of the interface.

        Raises:
            ShapeError: naming the interface.
        """
        if self.shares is not None and self.shares.shape[-1] != h.shape[0]:
            raise ShapeError(
                f"interface '{name}': got labels of {self.shares.shape[-1]} sequences for a message of shape "
                f"{tuple(h.shape)}, expected a row of labels for each of its {h.shape[0]} examples; give labels (B, T)"
            )

    # -- there and back -------------------------------------------------------------------------------

    def divisor(self, h: Tensor) -> float:
        """Return the number by which the criterion divided the sum of per-example losses.

        Raises:
            ConfigError: if there is no such number, because the criterion weighs examples by their labels.
        """
        if callable(self.reduction):
            return self.reduction(h)
        if self.counts_tokens:
            raise ConfigError(
                f"reduction={self.reduction!r} weighs examples by the number of their labels, and those of this batch "
                "are not known here; decouple with reduction='mean' and a criterion that is a mean over examples"
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
        if self.shares is not None:
            return _times(delta, self.shares * (factor * self.scale()))
        return delta * (factor * self.scale() / self.divisor(delta if like is None else like))

    def to_example(self, gradient: Tensor, *, like: Tensor | None = None) -> Tensor:
        """Return a gradient that the criterion has sent, ``(B, ...)``, in per-example units.

        Args:
            gradient: from the criterion.
            like: one message, where ``gradient`` is a row of several.
        """
        if self.shares is not None:
            return _times(gradient, self._inverse(self.shares))
        return gradient * (self.divisor(gradient if like is None else like) / self.scale())

    def to_example_(self, gradient: Tensor) -> Tensor:
        """Do the same in place."""
        if self.shares is not None:
            return gradient.mul_(_rows_like(self._inverse(self.shares), gradient))
        return gradient.mul_(self.divisor(gradient) / self.scale())

    def _inverse(self, shares: Tensor) -> Tensor:
        """Return the factors of rows from the criterion's units, ``(..., B)``; zero where an example has no label."""
        return (shares * self.scale()).reciprocal().masked_fill(shares == 0, 0.0)

    def counted(self, message: Tensor) -> Tensor:
        """Return a message, ``(B, ...)``, with zeros for examples without any label: nobody learns from those rows."""
        return message if self.shares is None else _times(message, self.shares != 0)

    def reduce(self, losses: Tensor) -> Tensor:
        """Return the losses of examples, ``(..., B)``, as the criterion would reduce them, unscaled: ``(...)``."""
        if self.shares is not None:
            return _times(losses, self.shares).sum(-1)
        one = losses if losses.ndim == 1 else losses.flatten(0, -2)[0]
        return losses.sum(-1) / self.divisor(one)


def _times(rows: Tensor, factors: Tensor) -> Tensor:
    """Return rows, ``(..., B, ...)``, each times its factor, ``(..., B)``, in their own dtype."""
    return (rows * _rows_like(factors, rows)).to(rows.dtype)


def _rows_like(factors: Tensor, rows: Tensor) -> Tensor:
    """Return factors in a form that multiplies rows: at least in float32, since half precision would round them."""
    dtype = torch.float64 if rows.dtype == torch.float64 else torch.float32
    return factors.to(dtype).view(*factors.shape, *[1] * (rows.ndim - factors.ndim))


def _are_labels(value: Any) -> TypeGuard[Tensor]:
    return isinstance(value, Tensor) and value.ndim > 1 and not value.is_floating_point()


def _described(value: object) -> str:
    return f"{brief(value)} and {value.dtype}" if isinstance(value, Tensor) else brief(value)


def _is_above_zero(total: float | Tensor) -> bool:
    """Is a count above zero? Nobody waits for one on an accelerator."""
    return (isinstance(total, Tensor) and not total.is_cpu) or bool(total > 0)
