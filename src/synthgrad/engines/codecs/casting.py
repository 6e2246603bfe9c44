"""The plain codec: a tensor is sent as it lies in memory, in a given dtype."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...core import ConfigError
from .base import Codec

__all__ = ["Cast", "cast"]


@dataclass(frozen=True, slots=True)
class Cast:
    """Sends tensors in a dtype.

    Attributes:
        dtype: the dtype of the bytes that are sent.
    """

    dtype: torch.dtype

    @property
    def name(self) -> str:
        """See `Codec.name`."""
        return f"cast to {self.dtype}"

    def num_bytes(self, shape: Sequence[int]) -> int:
        """See `Codec.num_bytes`."""
        return math.prod(shape) * self.dtype.itemsize

    def encode(self, tensor: Tensor) -> Tensor:
        """See `Codec.encode`."""
        return tensor.to(self.dtype).contiguous().view(-1).view(torch.uint8)

    def decode(self, data: Tensor, shape: Sequence[int], device: torch.device, dtype: torch.dtype) -> Tensor:
        """See `Codec.decode`."""
        return data.view(self.dtype).view(tuple(shape)).to(device, dtype)


def cast(dtype: torch.dtype) -> Codec:
    """Return the codec that sends tensors in a dtype.

    ``torch.bfloat16`` halves the traffic of a float32 network.

    >>> codec = cast(torch.bfloat16)
    >>> codec.name, codec.num_bytes((2, 3))
    ('cast to torch.bfloat16', 12)
    >>> data = codec.encode(torch.tensor([[1.0, 2.0, 3.001]]))
    >>> codec.decode(data, (1, 3), torch.device("cpu"), torch.float32)
    tensor([[1., 2., 3.]])

    Args:
        dtype: a floating dtype.

    Raises:
        ConfigError: if it is not a floating dtype.
    """
    if not dtype.is_floating_point:
        raise ConfigError(
            f"cast({dtype}): expected a floating dtype, such as torch.bfloat16, for activations and messages are real numbers"
        )
    return Cast(dtype)
