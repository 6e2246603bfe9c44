"""Random flips and shifts of batches of images, on the images' device."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["Augment", "flip_and_shift"]

#: Keeps these seeds apart from those of the generators that draw the batches.
_SEED_OFFSET = 1 << 32


class Augment:
    """Flips half of the images from left to right, and shifts each image along both axes.

    The draws depend on the seed alone, so every method sees the same images.

    Args:
        seed: seed of the random generator.
        flip: whether to flip; turn it off for images that mean something else when mirrored, such as digits.
        max_shift: largest shift in pixels. Pixels from outside the image are zero.
    """

    def __init__(self, seed: int, *, flip: bool, max_shift: int = 4) -> None:
        self.flip = flip
        self.max_shift = max_shift
        self._generator = torch.Generator().manual_seed(_SEED_OFFSET + seed)

    def __call__(self, x: Tensor) -> Tensor:
        """Return flipped and shifted images of ``x``, ``(B, C, Y, X)``, in the same memory layout."""
        n = x.shape[0]
        # Flips are drawn even if they are not used, so that the shifts are the same either way.
        flips = torch.randint(2, (n,), generator=self._generator)
        shifts = torch.randint(2 * self.max_shift + 1, (2, n), generator=self._generator) - self.max_shift
        flips = flips.bool() if self.flip else torch.zeros(n, dtype=torch.bool)
        return flip_and_shift(x, flips.to(x.device), shifts.to(x.device))

    def state_dict(self) -> dict[str, Any]:
        """Return the generator's state, for `load_state_dict`."""
        return {"generator": self._generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self._generator.set_state(state["generator"].cpu())


def flip_and_shift(x: Tensor, flips: Tensor, shifts: Tensor) -> Tensor:
    """Flip images from left to right, then shift them; pixels from outside are zero.

    Args:
        x: images, ``(B, C, Y, X)``.
        flips: whether to flip each image, ``(B,)`` bool.
        shifts: number of pixels to shift each image down and to the right, ``(2, B)`` int64.

    Returns:
        Images of the same shape and memory layout (channels last or not).
    """
    n, _, height, width = x.shape
    rows = torch.arange(height, device=x.device) - shifts[0].unsqueeze(1)  # (B, Y): source row of each pixel
    columns = torch.arange(width, device=x.device) - shifts[1].unsqueeze(1)  # (B, X)
    outside = ((rows < 0) | (rows >= height)).unsqueeze(2) | ((columns < 0) | (columns >= width)).unsqueeze(1)
    columns = torch.where(flips.unsqueeze(1), width - 1 - columns, columns)
    # Pixels from outside are read from the corner of a frame of zeros, one pixel wide.
    rows = torch.where(outside, 0, rows.unsqueeze(2) + 1)  # (B, Y, X)
    columns = torch.where(outside, 0, columns.unsqueeze(1) + 1)
    framed = F.pad(x, (1, 1, 1, 1)).permute(0, 2, 3, 1)  # (B, Y + 2, X + 2, C)
    images = torch.arange(n, device=x.device).view(-1, 1, 1)
    moved = framed[images, rows, columns].permute(0, 3, 1, 2)
    last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return moved if last else moved.contiguous()
