"""Convolutional synthetic gradient models."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor, nn

from ..context_input import check_context, encode
from ..spatial import check_norm, convolution, norm_of
from .base import Activation, GradientModel, set_to_zero

__all__ = ["ConvolutionalModel"]

_PLACES = {1: ("L",), 2: ("Y", "X"), 3: ("Z", "Y", "X")}


class ConvolutionalModel(GradientModel):
    """Convolutional ``M`` on ``h``: ``(B, C, L)``, ``(B, C, Y, X)``, ``(B, C, Z, Y, X)``, or these with the channels elsewhere.

    The context enters as channel masks, or as maps. A mask is the same everywhere, so the label can change the
    prediction everywhere alike only. A map is a learned offset of the shape of ``h`` for each class, added to the
    output: what an ordinary output layer, whose weights differ from place to place, sends back on average for that
    class. Messages must then have the size of the example's.

    The convolutions keep the resolution by zero-padding: a message has the shape of ``h``. (The paper
    is reported to have used none, DNI §3.1, which only fits if its messages shrink.)

    Args:
        channels: ``C``.
        hidden: channels of the hidden layers, each Conv–(BatchNorm)–activation; ``()`` is one
            convolution.
        width: number of context features: one constant plane for each (DNI §3.1).
        kernel: odd size of the kernels.
        norm: BatchNorm in the hidden layers.
        activation: makes the hidden layers' activation.
        maps: ``(L,)``, ``(Y, X)`` or ``(Z, Y, X)``: take the context as maps of this size; None for masks.
        space_dims: 1, 2 or 3.
        features_at: the dimension of ``h`` that holds the channels.
        name: name of the interface.
    """

    def __init__(
        self,
        channels: int,
        hidden: Sequence[int],
        width: int,
        *,
        kernel: int = 5,
        norm: bool = True,
        activation: Activation = nn.ReLU,
        maps: Sequence[int] | None = None,
        space_dims: int = 2,
        features_at: int = 1,
        name: str = "?",
    ) -> None:
        super().__init__(width, name)
        self.channels = channels
        self.space_dims = space_dims
        self.features_at = features_at
        self.size = tuple(maps) if maps and width else None
        # (classes, C · Y · X)
        self.table = nn.Parameter(torch.zeros(width, channels * prod(self.size))) if self.size else None
        sizes = [channels if self.size else channels + width, *hidden]
        layers: list[nn.Module] = []
        for a, b in zip(sizes, sizes[1:], strict=False):
            layers += [convolution(space_dims, a, b, kernel, bias=not norm)]
            layers += [norm_of(space_dims, b)] if norm else []
            layers += [activation()]
        last = convolution(space_dims, sizes[-1], channels, kernel)
        set_to_zero(last)
        self.layers = nn.Sequential(*layers, last)

    def check(self, h: Tensor, c: Tensor | None) -> None:
        at = self.features_at
        if h.ndim != self.space_dims + 2 or h.shape[at] != self.channels:
            self._refuse(h, self._shape(_PLACES[self.space_dims]))
        first = h if at == 1 else h.movedim(at, 1)
        if self.size and first.shape[2:] != self.size:
            self._refuse(h, self._shape(self.size))
        if self.width:
            check_context(c, self.width, first, self.name, by_place=False)
        check_norm(self, h.numel() // self.channels, h, self.name)

    def _shape(self, size: Sequence[int | str]) -> str:
        """Return what messages are like, in words."""
        sizes = list(map(str, size))
        sizes.insert(self.features_at - 1, str(self.channels))
        return f"(B, {', '.join(sizes)})"

    def forward(self, h: Tensor, c: Tensor | None = None) -> Tensor:
        if self.features_at == 1:
            return self._on_first(h, c)
        return self._on_first(h.movedim(self.features_at, 1), c).movedim(1, self.features_at)

    def _on_first(self, h: Tensor, c: Tensor | None) -> Tensor:
        """Return the prediction for ``h`` with its channels first."""
        if self.width:
            assert c is not None
            planes = encode(c, self.width, h, self.name, self.ignore_index)  # (B, width)
            if self.table is not None:
                offset = planes.to(self.table.dtype) @ self.table
                return self.layers(h) + offset.view(-1, *h.shape[1:])
            while planes.ndim < h.ndim:
                planes = planes.unsqueeze(-1)
            h = torch.cat([h, planes.expand(-1, -1, *h.shape[2:])], dim=1)  # (B, C + width, Y, X)
        return self.layers(h)
