"""The codec of the largest values: of messages a small share is sent, and what was left out is added to the next one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ...core import ConfigError
from ...core.given import brief
from .base import Codec

__all__ = ["TopK", "top_k"]

#: Number of values of which the largest are chosen; places within them are numbers of 16 bits.
_BLOCK = 1024
_VALUE = torch.bfloat16


@dataclass(slots=True)
class TopK:
    """Sends the values of largest magnitude in every block of 1,024, with their places; all others arrive as zero.

    Attributes:
        share: of the values that are sent.
        feedback: whether what was left out of a tensor is added to the next one of the same shape.
    """

    share: float
    feedback: bool = True
    _left: Tensor | None = field(default=None, repr=False, compare=False)

    @property
    def name(self) -> str:
        """See `Codec.name`."""
        return f"largest {100 * self.share:g} %{' with error feedback' if self.feedback else ''}"

    def for_direction(self) -> Codec:
        """See `KeepingCodec.for_direction`."""
        return TopK(self.share, self.feedback)

    def state_dict(self) -> dict[str, Any]:
        """See `KeepingCodec.state_dict`."""
        return {"left": self._left}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See `KeepingCodec.load_state_dict`."""
        self._left = state["left"]

    def num_bytes(self, shape: Sequence[int]) -> int:
        """See `Codec.num_bytes`."""
        num_blocks, size = _division(math.prod(shape))
        return num_blocks * self._kept(size) * (_VALUE.itemsize + torch.int16.itemsize)

    def encode(self, tensor: Tensor) -> Tensor:
        """See `Codec.encode`."""
        values = tensor.float()
        if self._left is not None and self._left.shape == values.shape:
            values = values + self._left.to(values.device)
        num_blocks, size = _division(values.numel())
        blocks = F.pad(values.reshape(-1), (0, num_blocks * size - values.numel())).view(num_blocks, size)
        at = blocks.abs().topk(self._kept(size), 1, sorted=False).indices
        sent = blocks.gather(1, at).to(_VALUE)
        if self.feedback:
            left = blocks.scatter(1, at, blocks.gather(1, at) - sent.float()).view(-1)[: values.numel()]
            # What is not finite is told once, and not ever after.
            self._left = left.view(values.shape).nan_to_num(0.0, 0.0, 0.0)
        return torch.cat(
            [sent.reshape(-1).view(torch.uint8), at.to(torch.int16).reshape(-1).view(torch.uint8)]
        )

    def decode(self, data: Tensor, shape: Sequence[int], device: torch.device, dtype: torch.dtype) -> Tensor:
        """See `Codec.decode`."""
        data, num = data.to(device), math.prod(shape)
        num_blocks, size = _division(num)
        kept = self._kept(size)
        split = num_blocks * kept * _VALUE.itemsize
        sent = data[:split].view(_VALUE).view(num_blocks, kept).float()
        at = data[split:].view(torch.int16).view(num_blocks, kept).long()
        blocks = torch.zeros(num_blocks, size, device=device).scatter_(1, at, sent)
        return blocks.view(-1)[:num].view(tuple(shape)).to(dtype)

    def _kept(self, size: int) -> int:
        """Return the number of values of a block that are sent."""
        return max(1, round(self.share * size))


def _division(num: int) -> tuple[int, int]:
    """Return into how many blocks of which size a number of values is divided: a small tensor is one block."""
    size = min(num, _BLOCK)
    return (-(-num // size), size) if num else (0, 1)


def top_k(share: float = 1 / 16, *, feedback: bool = True) -> Codec:
    """Return the codec that sends the largest values alone, for messages: ``Stages(…, message_codec=top_k(1 / 16))``.

    A value takes 4 bytes, with its place, so that a sixteenth of them takes a sixteenth of float32. What is left out is kept and
    added to the next message of the same shape (error feedback, Seide et al. 2014), so that nothing is lost in the sum over
    batches, which is what the mean gradient of a module's weights is made of as far as the activations agree. Activations
    need all of their values: take another codec for them.

    >>> codec = top_k(0.25, feedback=False)
    >>> codec.name, codec.num_bytes((2, 4))
    ('largest 25 %', 8)
    >>> data = codec.encode(torch.tensor([[0.5, -4.0, 0.1, 0.0], [0.0, 0.0, 3.0, 0.2]]))
    >>> codec.decode(data, (2, 4), torch.device("cpu"), torch.float32)
    tensor([[ 0., -4.,  0.,  0.],
            [ 0.,  0.,  3.,  0.]])

    Args:
        share: of the values that are sent, above 0 up to 1; at least one of each block of 1,024.
        feedback: whether to add what was left out to the next message.

    Raises:
        ConfigError: if the share is out of its range.
    """
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share <= 1:
        raise ConfigError(f"top_k({brief(share)}): expected a share above 0 up to 1, such as 1 / 16")
    if not isinstance(feedback, bool):
        raise ConfigError(f"feedback={brief(feedback)}: expected True or False")
    return TopK(float(share), feedback)
