"""The protocol of codecs, which convert tensors into the bytes that are sent."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from ...core import ConfigError
from ...core.given import brief

__all__ = ["Codec", "KeepingCodec", "check_codecs"]


@runtime_checkable
class Codec(Protocol):
    """Converts tensors into bytes and back. It has no state: one object serves both ends of all links. See `KeepingCodec`.

    The number of bytes of a tensor depends on its shape only, so that the receiver knows it from the header.
    """

    @property
    def name(self) -> str:
        """What the codec does. The handshake compares names, so equal names must mean equal bytes."""
        ...

    def num_bytes(self, shape: Sequence[int]) -> int:
        """Return the number of bytes for a tensor of this shape."""
        ...

    def encode(self, tensor: Tensor) -> Tensor:
        """Return a tensor as bytes.

        Args:
            tensor: ``(B, ...)``, detached, on any device. It does not change afterwards, so the result may
                share its memory.

        Returns:
            ``(num_bytes(tensor.shape),)`` uint8, contiguous, on the same device.
        """
        ...

    def decode(self, data: Tensor, shape: Sequence[int], device: torch.device, dtype: torch.dtype) -> Tensor:
        """Return the tensor for some bytes.

        Args:
            data: ``(num_bytes(shape),)`` uint8, as `encode` returned them, at least one byte. The result may
                share their memory, and then owns it. They begin at a multiple of 16 bytes.
            shape: the shape of the result.
            device: the device of the result; the bytes may be on another device.
            dtype: the dtype of the result.
        """
        ...


@runtime_checkable
class KeepingCodec(Codec, Protocol):
    """A codec whose sender keeps something from one tensor to the next. `Codec.decode` depends on the bytes alone."""

    def for_direction(self) -> Codec:
        """Return a codec of its own for the sender of one kind of tensor on one link."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return what the sender keeps, as plain containers of tensors."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load what `state_dict` returned."""
        ...


def check_codecs(shapes: Iterable[Sequence[int]] = (), /, **given: object) -> None:
    """Refuse what is no codec, and codecs that cannot encode what crosses.

    Args:
        shapes: of the messages at all interfaces.
        given: what was given, by the name of the argument.

    Raises:
        ConfigError: naming the argument.
    """
    for what, codec in given.items():
        if codec is None:
            continue
        if not isinstance(codec, Codec):
            raise ConfigError(f"{what}={brief(codec)}: expected a codec, such as codecs.blocks(8)")
        for shape in shapes:
            codec.num_bytes(shape)  # a codec that is too wide says so
