"""Which rows of a batch a message is sent for: both ends of a link find the same ones, from the number of the batch."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["chosen_rows"]


def chosen_rows(share: float, num_rows: int, step: int, seed: int) -> Tensor | None:
    """Return the numbers of the rows, ``(n,)`` int64, ascending, on the CPU; None for all.

    Args:
        share: of the rows; at least one is chosen.
        num_rows: number of rows of the batch.
        step: number of the batch.
        seed: equal in all processes.
    """
    count = math.ceil(share * num_rows)
    if count >= num_rows:
        return None
    generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
    return torch.randperm(num_rows, generator=generator)[: max(1, count)].sort().values
