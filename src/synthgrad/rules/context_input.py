"""How a rule's model takes in its context: class indices, one-hot rows, or any tensor."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ..core import ContextError

__all__ = ["IGNORED", "add_up", "check_context", "encode", "has_labels", "index_error", "look_up"]

#: The class index that says "no label", as PyTorch's losses have it.
IGNORED = -100


def check_context(c: Tensor | None, width: int, h: Tensor, name: str, *, by_place: bool = True) -> Tensor:
    """Return the context if it fits: ``(B,)`` integers or ``(B, width)`` floats.

    The range of integers is not checked, which would wait for the device: a look-up out of range fails by
    itself, see `look_up`.

    Args:
        c: the context.
        width: classes, or features.
        h: ``(B, ..., H)``, the message with its features last.
        name: of the interface.
        by_place: may there be one for each place, ``(B, T)`` for ``(B, T, H)``?

    Raises:
        ContextError: if it is missing or has another shape.
    """
    if c is None:
        raise ContextError(
            f"interface '{name}': its rule needs a context (labels) and got none; call net(x, context=y), "
            "or run the network inside `with synthgrad.context(y):`; to predict, net.eval() first"
        )
    indices = not c.is_floating_point()
    most = h.ndim - 1 if by_place else 1
    lead = h.shape[: c.ndim] if indices else h.shape[: c.ndim - 1]
    if indices and 1 <= c.ndim <= most and c.shape == lead:
        return c
    if not indices and 2 <= c.ndim <= most + 1 and c.shape == (*lead, width):
        return c
    # The shapes that one for each place would have, whichever dimension holds the features.
    shapes = [(*h.shape[:k], *h.shape[k + 1 :]) for k in range(1, h.ndim)]
    if not by_place and indices and c.ndim > 1 and tuple(c.shape) in shapes:
        remedy = (
            f", one for each example and not for each place; a rule that takes {tuple(c.shape)} is SyntheticGradient with "
            "model=models.dense()" + (", or LocalLoss with head=heads.token_head()" if h.ndim == 3 else "")
        )
    else:
        remedy = f", or one for each place, {tuple(h.shape[:-1])}" if by_place and h.ndim > 2 else ""
    raise ContextError(
        f"interface '{name}': got a context of shape {tuple(c.shape)} and dtype {c.dtype} for a message of "
        f"shape {tuple(h.shape)}, expected class indices ({h.shape[0]},) or features ({h.shape[0]}, {width}){remedy}"
    )


def has_labels(c: Tensor, ignore: int = IGNORED) -> Tensor | None:
    """Return which examples have a label at any of their places, ``(B,)`` bool.

    None where the context is not one for each place: class indices ``(B,)``, or features ``(B, width)``. Features for
    each place are no label where they are zero, as the rows are that `encode` makes of ignored indices.
    """
    if c.is_floating_point():
        return None if c.ndim < 3 else (c != 0).flatten(1).any(1)
    return None if c.ndim < 2 else (c != ignore).flatten(1).any(1)


def index_error(c: Tensor, width: int, name: str, ignore: int = IGNORED) -> ContextError:
    """Return the error for class indices out of range, made when a look-up has failed on them."""
    low, high = (int(v) for v in torch.aminmax(c[c != ignore]))
    return ContextError(
        f"interface '{name}': got class index {low if low < 0 else high}, expected 0 to {width - 1}; "
        + (
            f"give the rule context={max(high + 1, width)} if there are more classes"
            if low >= 0
            else f"an example without a label has ignore_index={ignore}"
        )
    )


def look_up(c: Tensor, table: Tensor, name: str, ignore: int = IGNORED) -> Tensor:
    """Return the rows of a table that class indices mean, ``(*c.shape, units)``; zeros where one is ignored.

    Args:
        c: class indices, of any shape.
        table: ``(classes, units)``.
        name: of the interface.
        ignore: the index that means no label.

    Raises:
        ContextError: if another index is out of range (on an accelerator the device stops the program).
    """
    if c.dtype != torch.int64:
        c = c.long()
    if _tells_by_itself(c, ignore):
        try:
            return _rows(c, table)
        except IndexError:
            pass
    ignored = c == ignore
    try:
        rows = _rows(c.masked_fill(ignored, 0), table)
    except IndexError:
        raise index_error(c, table.shape[0], name, ignore) from None
    return rows.masked_fill(ignored.unsqueeze(-1), 0)


def _tells_by_itself(c: Tensor, ignore: int) -> bool:
    """Would a look-up with an ignored index fail with an error that can be caught?

    On an accelerator it would end the program, and a compiled graph has no place for errors.
    """
    return ignore < 0 and c.is_cpu and not torch.compiler.is_compiling()


def _rows(c: Tensor, table: Tensor) -> Tensor:
    # index_select has the faster backward of the two, but takes one dimension only
    return table.index_select(0, c) if c.ndim == 1 else F.embedding(c, table)


def encode(c: Tensor, width: int, like: Tensor, name: str, ignore: int = IGNORED) -> Tensor:
    """Return ``(B, width)`` in the dtype of ``like``: indices as one-hot rows, features as they are.

    The row of an ignored index is zero.

    Raises:
        ContextError: if another index is out of range (on an accelerator the device stops the program).
    """
    if c.is_floating_point():
        return c.to(like.dtype)
    zeros = torch.zeros(*c.shape, width, dtype=like.dtype, device=like.device)
    index = c.long().unsqueeze(-1)
    if _tells_by_itself(c, ignore):
        try:
            return zeros.scatter_(-1, index, 1.0)  # (B, width)
        except RuntimeError as error:
            if "out of bounds" not in str(error):
                raise
    ignored = index == ignore
    try:
        return zeros.scatter_(-1, index.masked_fill(ignored, 0), (~ignored).to(like.dtype))
    except RuntimeError as error:
        if "out of bounds" not in str(error):
            raise
        raise index_error(c, width, name, ignore) from None


def add_up(rows: Tensor, c: Tensor, width: int, ignore: int = IGNORED) -> tuple[Tensor, Tensor, Tensor]:
    """Add up rows by the class, or the context features, that they belong to.

    Args:
        rows: ``(N, H)``; with features, ``(..., N, H)``.
        c: class indices ``(N,)``, which a look-up has found to be in range, or features ``(..., N, width)``.
        width: number of classes, or features.
        ignore: the index that means no label; such rows count nowhere.

    Returns:
        The sums ``(..., width, H)``; their weights ``(..., width)``: the number of rows of a class, and in general
        ``Σ_n |c_nk| Σ_j |c_nj|``, with which the features together take no more than a whole error from a row; and
        the largest weight of a single row, ``(...)``.
    """
    if c.is_floating_point():
        c = c.to(rows.dtype)
        shares = c.abs()
        totals = shares.sum(-1, keepdim=True)  # (..., N, 1)
        most = F.pad(totals.squeeze(-1).square(), (0, 1)).amax(-1)  # padded, since a batch may be empty
        return c.mT @ rows, (shares * totals).sum(-2), most
    c = c.long()
    index = torch.where(c == ignore, width, c)  # the last row is of no class
    ones = torch.ones_like(rows[:, 0])
    sums = rows.new_zeros(width + 1, rows.shape[1]).index_add(0, index, rows)
    return sums[:-1], rows.new_zeros(width + 1).index_add(0, index, ones)[:-1], rows.new_ones(())
