"""What a tensor is on the wire."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

__all__ = ["Codec"]


class Codec(Protocol):
    """Turns tensors into bytes and back. Has no state: one object serves both ends of all links.

    How many bytes a tensor takes follows from its shape, so that a receiver knows it from the header.
    """

    @property
    def name(self) -> str:
        """What the codec does. The handshake compares it: equal names mean equal bytes."""
        ...

    def num_bytes(self, shape: Sequence[int]) -> int:
        """Return how many bytes a tensor of this shape takes."""
        ...

    def encode(self, tensor: Tensor) -> Tensor:
        """Return a tensor as bytes.

        Args:
            tensor: ``(B, ...)``, detached, of any device. It does not change afterwards, so its memory may be shared.

        Returns:
            ``(num_bytes(tensor.shape),)`` uint8, contiguous, on the same device.
        """
        ...

    def decode(self, data: Tensor, shape: Sequence[int], device: torch.device, dtype: torch.dtype) -> Tensor:
        """Return the tensor that bytes stand for.

        Args:
            data: ``(num_bytes(shape),)`` uint8, as `encode` made them, at least one. Owned by the result, if it shares
                their memory. They begin at a multiple of 16 bytes.
            shape: of the result.
            device: where the result is to lie; the bytes may lie elsewhere.
            dtype: of the result.
        """
        ...
