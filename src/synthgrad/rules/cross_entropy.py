"""Cross entropy over a large vocabulary: scores are made a part at a time, and never kept."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ..core import ConfigError

__all__ = ["cross_entropy_in_parts"]


def cross_entropy_in_parts(
    features: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, num_parts: int, ignore_index: int
) -> Tensor:
    """Return ``−log softmax(features Wᵀ + bias)[target]`` of every row, ``(N,)``, at least in float32.

    The scores ``(N, V)`` are made in ``num_parts`` parts, one after the other, and once more in the backward pass. At
    most one tensor of a part's size exists at any time (two in half precision, whose exponentials are taken in float32).
    In a backward pass the gradient of the weight is summed in at least float32.

    Args:
        features: ``(N, D)``.
        weight: ``(V, D)``.
        bias: ``(V,)``, or None.
        targets: ``(N,)`` int64, from 0 to ``V − 1``, or ``ignore_index``.
        num_parts: number of parts.
        ignore_index: the target that means none; such a row has a loss of zero.

    Raises:
        ConfigError: if it is differentiated twice.
        RuntimeError: if a target is out of range (on an accelerator the device stops the program).
    """
    device = features.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else features.dtype
    # Cast here, where autograd takes note of it: inside, autocast is off, forward and backward alike.
    cast = [None if t is None else t.to(dtype) for t in (features, weight, bias)]
    size = max(1, -(-len(features) // num_parts))
    found: Any = _CrossEntropy.apply(*cast, targets, size, ignore_index)
    return found


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        features: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        size: int,
        ignore_index: int,
    ) -> Tensor:
        ignored = targets == ignore_index
        wanted = targets.masked_fill(ignored, 0).unsqueeze(1)  # (N, 1)
        losses: list[Tensor] = []
        norms: list[Tensor] = []
        for rows in _parts(len(features), size):
            scores = _scores(features[rows], weight, bias)  # (n, V); all that follows is in place
            top = scores.amax(1, keepdim=True)
            scores.sub_(top)
            right = scores.gather(1, wanted[rows]).squeeze(1)
            log_sum = scores.exp_().sum(1).log_()
            losses.append(log_sum - right)
            norms.append(log_sum.add_(top.squeeze(1)))
            del scores  # before the next part is made
        ctx.size = size
        ctx.save_for_backward(features, weight, bias, wanted, ignored, torch.cat(norms))
        return torch.cat(losses).masked_fill_(ignored, 0.0)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        if (
            torch.is_grad_enabled()
        ):  # what follows leaves no graph, so a second derivative would be wrong in silence
            raise ConfigError(
                "the loss of a token head is made in parts, and can be differentiated once; for a penalty on its gradient, "
                "or a rule of your own that needs a second derivative, take the cross entropy of head(h)"
            )
        features, weight, bias, wanted, ignored, norms = ctx.saved_tensors
        needs_features, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        wide = norms.dtype
        grad = grad.masked_fill(ignored, 0.0).unsqueeze(1)  # (N, 1)
        to_features = torch.empty_like(features) if needs_features else None
        to_weight = torch.zeros_like(weight, dtype=wide) if needs_weight else None
        to_bias = torch.zeros_like(bias, dtype=wide) if needs_bias else None
        for rows in _parts(len(features), ctx.size):
            part = features[rows]
            error = _scores(part, weight, bias)  # (n, V)
            error.sub_(norms[rows].unsqueeze(1)).exp_()  # the softmax
            error.scatter_(1, wanted[rows], error.gather(1, wanted[rows]).sub_(1.0))
            error.mul_(grad[rows])
            if to_bias is not None:
                to_bias += error.sum(0)
            error = error.to(part.dtype)
            with torch.autocast(part.device.type, enabled=False):
                if to_features is not None:
                    torch.mm(error, weight, out=to_features[rows])
                if to_weight is not None and part.dtype == wide:
                    to_weight.addmm_(error.t(), part)
                elif to_weight is not None:
                    to_weight += error.t() @ part
            del error  # before the next part is made
        return (
            to_features,
            None if to_weight is None else to_weight.to(weight.dtype),
            None if to_bias is None else to_bias.to(bias.dtype),
            None,
            None,
            None,
        )


def _scores(features: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return new scores, ``(n, V)``, at least in float32."""
    with torch.autocast(features.device.type, enabled=False):
        made = features @ weight.t()
    if made.dtype.itemsize < 4:
        made = made.float()
    return made if bias is None else made.add_(bias)


def _parts(num_rows: int, size: int) -> Iterator[slice]:
    """Yield the rows of each part; one part of no rows where there are none."""
    for start in range(0, max(num_rows, 1), size):
        yield slice(start, start + size)
