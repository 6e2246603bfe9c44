"""Random flips and shifts of training images, a batch at a time, on the device that they are on."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["Augment", "flip_and_shift"]

#: Far from the seeds of runs, whose generators draw the batches.
_OFFSET = 1 << 32


class Augment:
    """Flips half of the images from left to right, and shifts each by up to some pixels along both axes.

    What is drawn depends on the seed alone, so every method sees the same images.

    Args:
        seed: of the draws.
        flip: whether to flip; not where a mirrored image means something else.
        most: pixels of a shift, at most; what comes in from outside is zero.
    """

    def __init__(self, seed: int, *, flip: bool, most: int = 4) -> None:
        self.flip = flip
        self.most = most
        self._generator = torch.Generator().manual_seed(_OFFSET + seed)

    def __call__(self, x: Tensor) -> Tensor:
        """Return other images for ``x``, ``(B, C, Y, X)``, in its layout."""
        n = x.shape[0]
        # Both are always drawn: with and without flips, images are shifted alike.
        flips = torch.randint(2, (n,), generator=self._generator)
        shifts = torch.randint(2 * self.most + 1, (2, n), generator=self._generator) - self.most
        flips = flips.bool() if self.flip else torch.zeros(n, dtype=torch.bool)
        return flip_and_shift(x, flips.to(x.device), shifts.to(x.device))

    def state_dict(self) -> dict[str, Any]:
        """Return where the draws are."""
        return {"generator": self._generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from where the draws were."""
        self._generator.set_state(state["generator"].cpu())


def flip_and_shift(x: Tensor, flips: Tensor, shifts: Tensor) -> Tensor:
    """Return images flipped from left to right, then shifted, with zeros for what comes in from outside.

    Args:
        x: images, ``(B, C, Y, X)``.
        flips: which to flip, ``(B,)`` bool.
        shifts: pixels down and to the right, ``(2, B)`` int64.

    Returns:
        Images of the same shape, in the layout of ``x`` (channels last or not).
    """
    n, _, height, width = x.shape
    rows = torch.arange(height, device=x.device) - shifts[0].unsqueeze(1)  # (B, Y): where each comes from
    columns = torch.arange(width, device=x.device) - shifts[1].unsqueeze(1)  # (B, X)
    outside = ((rows < 0) | (rows >= height)).unsqueeze(2) | ((columns < 0) | (columns >= width)).unsqueeze(1)
    columns = torch.where(flips.unsqueeze(1), width - 1 - columns, columns)
    # A frame of zeros is one pixel wide, and all that lies outside is taken from its corner.
    rows = torch.where(outside, 0, rows.unsqueeze(2) + 1)  # (B, Y, X)
    columns = torch.where(outside, 0, columns.unsqueeze(1) + 1)
    framed = F.pad(x, (1, 1, 1, 1)).permute(0, 2, 3, 1)  # (B, Y + 2, X + 2, C)
    images = torch.arange(n, device=x.device).view(-1, 1, 1)
    moved = framed[images, rows, columns].permute(0, 3, 1, 2)
    last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return moved if last else moved.contiguous()
