"""Codecs of few bits: whole numbers, with a scale for every block of features."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ...core import ConfigError
from ...core.given import check_whole
from .base import Codec

__all__ = ["Blocks", "blocks"]

#: Of a scale. It has the range of float32, and three significant digits, which is more than eight bits have.
_SCALE = torch.bfloat16


@dataclass(frozen=True, slots=True)
class Blocks:
    """Sends the numbers of a tensor as whole numbers of some bits, and a scale for every block of them.

    A block is a number of values that lie side by side in memory: features of one token, say. Each value is at most half a
    step away from what was sent, and a step is the largest magnitude in its block over ``2^(bits - 1) - 1``.

    Attributes:
        bits: of a value, 8 or 4.
        size: number of values in a block.
    """

    bits: int
    size: int

    @property
    def name(self) -> str:
        """See `Codec.name`."""
        return f"{self.bits} bits in blocks of {self.size}"

    def num_bytes(self, shape: Sequence[int]) -> int:
        """See `Codec.num_bytes`."""
        num_blocks = -(-math.prod(shape) // self.size)
        return num_blocks * (_SCALE.itemsize + self.size * self.bits // 8)

    def encode(self, tensor: Tensor) -> Tensor:
        """See `Codec.encode`."""
        values = tensor.reshape(-1).float()
        values = F.pad(values, (0, -len(values) % self.size)).view(-1, self.size)
        most = 2 ** (self.bits - 1) - 1
        # Rounded as it is sent, so that both ends reckon with the same scale; what rounding has made too small is clipped.
        scales = (values.abs().amax(1) / most).to(_SCALE)
        inverse = torch.where(scales == 0, 0.0, scales.float().reciprocal())
        whole = (values * inverse.unsqueeze(1)).round_().clamp_(-most, most)
        if self.bits == 8:
            codes = whole.to(torch.int8).view(torch.uint8)
        else:
            # Two to a byte, the first in its lower half; reckoned in float32, which is faster than with bytes.
            codes = (whole[:, ::2] + 16 * whole[:, 1::2] + (8 + 16 * 8)).to(torch.uint8)
        return torch.cat([scales.view(torch.uint8), codes.reshape(-1)])

    def decode(self, data: Tensor, shape: Sequence[int], device: torch.device, dtype: torch.dtype) -> Tensor:
        """See `Codec.decode`."""
        data = data.to(device)
        num = math.prod(shape)
        num_blocks = -(-num // self.size)
        scales = data[: num_blocks * _SCALE.itemsize].view(_SCALE).view(-1, 1).float()
        codes = data[num_blocks * _SCALE.itemsize :].view(num_blocks, self.size * self.bits // 8)
        if self.bits == 8:
            whole = codes.view(torch.int8).float()
        else:
            whole = torch.stack([codes & 15, codes >> 4], -1).flatten(1).float() - 8
        return (whole * scales).view(-1)[:num].view(tuple(shape)).to(dtype)


def blocks(bits: int = 8, size: int = 64) -> Codec:
    """Return the codec that sends whole numbers of a few bits, with a scale for every block of values.

    With 8 bits and blocks of 64 a value takes 8.25 bits, with 4 bits 4.25: a quarter and an eighth of float32. A value that
    is not finite makes its whole block so; a `Guard` finds it before it is sent.

    >>> codec = blocks(4)
    >>> codec.name, codec.num_bytes((2, 64))
    ('4 bits in blocks of 64', 68)
    >>> data = codec.encode(torch.tensor([[7.0, -7.0, 3.2, 0.4]]))
    >>> codec.decode(data, (1, 4), torch.device("cpu"), torch.float32)
    tensor([[ 7., -7.,  3.,  0.]])

    Args:
        bits: of a value, 8 or 4.
        size: number of values in a block, an even one.

    Raises:
        ConfigError: if one is out of its range.
    """
    if bits not in (4, 8):
        raise ConfigError(f"blocks({bits!r}): expected 8 or 4 bits")
    check_whole("size", size, 2, "number of values in a block")
    if size % 2:
        raise ConfigError(f"size={size}: expected an even number of values in a block, such as 64")
    return Blocks(bits, size)
