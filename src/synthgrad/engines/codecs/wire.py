"""A wire without a process at its other end: what codecs make of activations and messages, for one process."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from .base import Codec, KeepingCodec

__all__ = ["CodecWire"]


class CodecWire:
    """Encodes and decodes what crosses an interface, as a link between two stages does.

    Args:
        codec: of activations; None to leave them as they are.
        message_codec: of messages; None for that of activations.
    """

    def __init__(self, codec: Codec | None, message_codec: Codec | None = None) -> None:
        self._up = _own(codec)
        self._down = _own(codec if message_codec is None else message_codec)

    def up(self, h: Tensor) -> Tensor:
        """Return an activation ``(B, ...)`` as the module above receives it."""
        return _through(self._up, h)

    def down(self, message: Tensor) -> Tensor:
        """Return a message ``(B, ...)`` as the module below receives it."""
        return _through(self._down, message)

    def state_dict(self) -> dict[str, Any]:
        """Return what codecs keep from one tensor to the next, as plain containers of tensors."""
        ways = {"up": self._up, "down": self._down}
        return {way: codec.state_dict() for way, codec in ways.items() if isinstance(codec, KeepingCodec)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load what `state_dict` returned."""
        for way, codec in (("up", self._up), ("down", self._down)):
            if isinstance(codec, KeepingCodec) and way in state:
                codec.load_state_dict(state[way])


def _own(codec: Codec | None) -> Codec | None:
    return codec.for_direction() if isinstance(codec, KeepingCodec) else codec


def _through(codec: Codec | None, t: Tensor) -> Tensor:
    if codec is None or not t.numel():
        return t
    # Contiguous bytes, as they would be sent; the result may share their memory, which nobody else has.
    data = codec.encode(t.detach()).clone()
    return codec.decode(data, t.shape, t.device, t.dtype)
