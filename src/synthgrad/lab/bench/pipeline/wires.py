"""Codecs on the wires of pipelines that know nothing of codecs: around the modules of their stages.

What a stage hands to its pipeline is the bytes of its activation, seen as numbers of float32 that nobody computes with; what
it is handed is decoded before its first layer. The gradient goes back in the same way::

    blocks ── encode ──► bytes as float32 ── send, receive ── decode ──► blocks
    gradient ◄── decode ── bytes as float32 ◄── receive, send ── encode ── gradient
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from ....engines.codecs import Codec
from ...training.codec_names import codec_from

__all__ = ["Wired", "codec_of", "on_wire"]


def codec_of(wire: str) -> Codec | None:
    """Return the codec for the name of a wire; None to send float32 as it is."""
    return codec_from(wire.replace(" ", ""))


def on_wire(codec: Codec | None, like: Tensor) -> Tensor:
    """Return an empty tensor of the shape that crosses the wire for a tensor."""
    if codec is None:
        return torch.empty(like.shape)
    return torch.empty(-(-codec.num_bytes(like.shape) // 4))


class Wired(nn.Module):
    """A stage's module between wires.

    Args:
        module: of the stage.
        codec: of the wires.
        comes: the shape of what comes from below, without a codec; None in the first stage.
        encodes: whether its output crosses a wire.
    """

    def __init__(
        self, module: nn.Module, codec: Codec, comes: Sequence[int] | None, *, encodes: bool
    ) -> None:
        super().__init__()
        self.module = module
        self._codec = codec
        self._comes = None if comes is None else tuple(comes)
        self._encodes = encodes

    def forward(self, x: Tensor) -> Tensor:
        """Return the output, encoded if it crosses a wire."""
        if self._comes is not None:
            x = cast(Tensor, _Decoded.apply(x, self._codec, self._comes))
        out = self.module(x)
        return cast(Tensor, _Encoded.apply(out, self._codec)) if self._encodes else out


def _packed(codec: Codec, t: Tensor) -> Tensor:
    data = codec.encode(t)
    rest = -len(data) % 4
    data = torch.cat([data, data.new_zeros(rest)]) if rest else data
    return data.view(torch.float32)


def _unpacked(codec: Codec, t: Tensor, shape: Sequence[int]) -> Tensor:
    data = t.contiguous().view(torch.uint8)[: codec.num_bytes(shape)]
    return codec.decode(data, shape, t.device, torch.float32)


class _Encoded(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, h: Tensor, codec: Codec) -> Tensor:
        ctx.codec, ctx.shape, ctx.dtype = codec, h.shape, h.dtype
        return _packed(codec, h)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return _unpacked(ctx.codec, grads[0], ctx.shape).to(ctx.dtype), None


class _Decoded(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, codec: Codec, shape: Sequence[int]) -> Tensor:
        ctx.codec = codec
        return _unpacked(codec, x, shape)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return _packed(ctx.codec, grads[0]), None, None
