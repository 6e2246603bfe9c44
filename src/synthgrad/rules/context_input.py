"""How a rule's model takes in its context: class indices, one-hot rows, or any tensor."""

from __future__ import annotations

import torch
from torch import Tensor

from ..core import ContextError

__all__ = ["check_context", "encode", "index_error"]


def check_context(c: Tensor | None, width: int, h: Tensor, name: str) -> Tensor:
    """Return the context if it fits: ``(B,)`` integers or ``(B, width)`` floats.

    The range of integers is not checked, which would wait for the device: a look-up out of range fails by
    itself, see `index_error`.

    Raises:
        ContextError: if it is missing or has another shape.
    """
    if c is None:
        raise ContextError(
            f"interface '{name}': its rule needs a context (labels) and got none; call net(x, context=y), "
            "or run the network inside `with synthgrad.context(y):`"
        )
    indices = not c.is_floating_point()
    lead = h.shape[: c.ndim] if indices else h.shape[: c.ndim - 1]
    if indices and 1 <= c.ndim < h.ndim and c.shape == lead:
        return c
    if not indices and 2 <= c.ndim <= h.ndim and c.shape == (*lead, width):
        return c
    raise ContextError(
        f"interface '{name}': got a context of shape {tuple(c.shape)} and dtype {c.dtype} for a message of "
        f"shape {tuple(h.shape)}, expected class indices ({h.shape[0]},) or features ({h.shape[0]}, {width})"
    )


def index_error(c: Tensor, width: int, name: str) -> ContextError:
    """Return the error for class indices out of range, made when a look-up has failed on them."""
    low, high = (int(v) for v in torch.aminmax(c))
    return ContextError(
        f"interface '{name}': got class index {low if low < 0 else high}, expected 0 to {width - 1}; "
        f"give the rule context={max(high + 1, width)} if there are more classes"
    )


def encode(c: Tensor, width: int, like: Tensor) -> Tensor:
    """Return ``(B, width)`` in the dtype of ``like``: indices as one-hot rows, features as they are."""
    if c.is_floating_point():
        return c.to(like.dtype)
    zeros = torch.zeros(*c.shape, width, dtype=like.dtype, device=like.device)
    return zeros.scatter_(-1, c.long().unsqueeze(-1), 1.0)  # (B, width)
