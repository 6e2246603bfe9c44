"""Checksums of examples, to find out whether two processes have read the same batch, in the same order."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...core import DataError
from ...core.outputs import tensors_in

__all__ = ["batch_checksum", "check_same_examples", "differ"]

_BITS = 30
_MASK = (1 << _BITS) - 1
#: 2⁶⁴ over the golden ratio, as a signed number; products with it wrap around.
_ODD = 0x9E3779B97F4A7C15 - (1 << 64)


def batch_checksum(ids: Tensor | None, target: Any) -> int:
    """Return a number for a batch that consists of the checksums of its ids and of its targets.

    The part of what is missing is 0. Waits for the device.
    """
    return _of([] if ids is None else [ids]) << _BITS | _of(tensors_in(target))


def differ(one: int, other: int) -> str | None:
    """Return in what two batches differ, ``ids`` or ``targets``, if both are known; None if in nothing."""
    for name, shift in (("ids", _BITS), ("targets", 0)):
        a, b = one >> shift & _MASK, other >> shift & _MASK
        if a and b and a != b:
            return name
    return None


def check_same_examples(batch: int, theirs: int, own: int, where: str) -> None:
    """Refuse a batch if the stage below was given other examples than this one.

    Raises:
        DataError: saying what differs.
    """
    what = differ(theirs, own)
    if what is not None:
        raise DataError(
            f"batch {batch}: the activation that came to '{where}' belongs to other {what} than this process was given, so "
            "the processes read their data in different orders; give each DataLoader a generator of its own with one seed "
            "(DataLoader(…, shuffle=True, generator=torch.Generator().manual_seed(0))), or let targets travel (target=y)"
        )


def _of(tensors: list[Tensor]) -> int:
    total = 0
    for t in tensors:
        words = _words(t.detach())
        places = torch.arange(1, words.numel() + 1, device=words.device)
        # The product is mixed once more, since the low bits of a product depend on the low bits of its factors only.
        mixed = (words + places) * (places * 2 + 1) * _ODD
        total = total * 31 + int((mixed ^ mixed >> 32).sum().item()) + words.numel()
    return (total ^ total >> 33) & _MASK or 1 if tensors else 0


def _words(t: Tensor) -> Tensor:
    """Return the bytes of a tensor as int64."""
    flat = (t.contiguous() if t.dtype != torch.bool else t.to(torch.uint8)).view(-1)
    if flat.dtype == torch.int64:
        return flat
    data = flat.view(torch.uint8)
    rest = -data.numel() % 8
    if rest:
        data = torch.cat([data, data.new_zeros(rest)])
    return data.view(torch.int64)
