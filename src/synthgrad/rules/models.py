"""Synthetic gradient models: what ``M(h, c)`` is made of.

All take ``(h, c)``, some the state of the receiving module as well, and return a tensor of the shape of ``h``;
the last layer starts at zero, so the first synthetic gradients are exactly zero (DNI §2). A factory builds one
for a `Site`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from math import prod

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..core import CutError, ShapeError, Site
from .context_input import check_context, encode, index_error

__all__ = [
    "ConvolutionalModel",
    "DenseModel",
    "GradientModel",
    "ModelFactory",
    "convolutional",
    "dense",
    "like_layer",
]

Activation = Callable[[], nn.Module]


class GradientModel(nn.Module):
    """Base of the models: knows the width of its context and refuses what does not fit.

    Args:
        width: number of context features (classes), 0 for none.
        name: name of the interface, for errors.

    Attributes:
        receiver: features of the receiving module's state that ``forward`` takes as a third argument, 0 for none.
    """

    def __init__(self, width: int, name: str) -> None:
        super().__init__()
        self.width = width
        self.name = name
        self.receiver = 0

    def check(self, h: Tensor, c: Tensor | None) -> None:
        """Raise `ShapeError` or `ContextError` if ``M(h, c)`` cannot be computed."""
        if self.width:
            check_context(c, self.width, h, self.name)

    def _refuse(self, h: Tensor, expected: str) -> None:
        raise ShapeError(
            f"interface '{self.name}': got a message of shape {tuple(h.shape)}, expected {expected} as in "
            "the example that decouple was given"
        )


ModelFactory = Callable[[Site, int], GradientModel]


def _zero(layer: nn.Linear | nn.Conv2d) -> None:
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


class DenseModel(GradientModel):
    """Fully connected ``M`` on the last dimension of ``h``: ``(B, H)`` or ``(B, T, H)``.

    The context enters the first layer. ``[h, onehot(c)] Wᵀ + b`` is computed as ``h W_hᵀ + table[c]``: the
    same functions, with a look-up in place of a wider product, and without a bias, which a table with a
    row for each class holds already. A context of features that do not sum to one gets no offset of
    its own: append a column of ones, and count it, if one is wanted. In ``M(h, s, c)`` the state ``s`` of the
    receiving module, ``(B, F)``, enters the first layer too, as ``+ s W_sᵀ``.

    Args:
        features: ``H``.
        hidden: widths of the hidden layers, each Linear–(BatchNorm)–activation; ``()`` is linear.
        width: number of context features.
        norm: BatchNorm in the hidden layers.
        activation: makes the hidden layers' activation.
        receiver: ``F``, features of the receiving module's state; 0 for none.
        name: name of the interface.
    """

    def __init__(
        self,
        features: int,
        hidden: Sequence[int],
        width: int,
        *,
        norm: bool = True,
        activation: Activation = nn.ReLU,
        receiver: int = 0,
        name: str = "?",
    ) -> None:
        super().__init__(width, name)
        self.features = features
        self.receiver = receiver
        sizes = [features, *hidden, features]
        self.first = nn.Linear(sizes[0], sizes[1], bias=not width)
        # (classes, units): a row for each class, so that a class index is a look-up.
        self.table = nn.Parameter(torch.empty(width, sizes[1])) if width else None
        rest: list[nn.Module] = []
        for a, b in zip(sizes[1:], sizes[2:], strict=False):
            rest += [nn.BatchNorm1d(a)] if norm else []
            rest += [activation(), nn.Linear(a, b)]
        self.rest = nn.Sequential(*rest)
        self.state = nn.Linear(receiver, sizes[1], bias=False) if receiver else None
        self.is_linear = not hidden
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise as ``nn.Linear`` on the joined input would, then set the last layer to zero."""
        bound = (self.features + self.width + self.receiver) ** -0.5
        nn.init.uniform_(self.first.weight, -bound, bound)
        offset = self.first.bias if self.table is None else self.table
        nn.init.uniform_(offset, -bound, bound)
        if self.state is not None:
            nn.init.uniform_(self.state.weight, -bound, bound)
        if len(self.rest):
            last = self.rest[-1]
            assert isinstance(last, nn.Linear)
            _zero(last)
        else:
            _zero(self.first)
            if self.table is not None:
                nn.init.zeros_(self.table)
            if self.state is not None:
                _zero(self.state)

    def check(self, h: Tensor, c: Tensor | None) -> None:
        if h.ndim < 2 or h.shape[-1] != self.features:
            self._refuse(h, f"(..., {self.features})")
        super().check(h, c)

    def forward(self, h: Tensor, c: Tensor | None = None, s: Tensor | None = None) -> Tensor:
        z = self._first(h, c)  # (B, ..., units)
        if self.state is not None:
            assert s is not None
            z = z + _spread(self.state(s.to(self.state.weight.dtype)), h)
        if self.is_linear:
            return z
        # BatchNorm1d wants (N, C): examples and positions are one dimension to it.
        return self.rest(z.flatten(0, -2)).view(*h.shape[:-1], self.features)

    def _first(self, h: Tensor, c: Tensor | None) -> Tensor:
        """Return the first layer on the message and the context."""
        if self.table is None or c is None:
            return self.first(h)
        if h.ndim == 2:
            return torch.addmm(self._context_term(c, self.table), h, self.first.weight.t())
        return F.linear(h, self.first.weight) + _spread(self._context_term(c, self.table), h)

    def _context_term(self, c: Tensor, table: Tensor) -> Tensor:
        """Return what the context adds to the first layer, ``(B, ..., units)``."""
        if c.is_floating_point():
            return c.to(table.dtype) @ table
        try:
            # index_select has the faster backward of the two, but takes one dimension only
            return table.index_select(0, c) if c.ndim == 1 else F.embedding(c, table)
        except IndexError:
            raise index_error(c, self.width, self.name) from None


def _spread(z: Tensor, h: Tensor) -> Tensor:
    """Return ``z``, one row for each example, as one for all positions of that example in ``h``."""
    while z.ndim < h.ndim:
        z = z.unsqueeze(-2)
    return z


class ConvolutionalModel(GradientModel):
    """Convolutional ``M`` on ``h`` of shape ``(B, C, Y, X)``; the context enters as channel masks, or as maps.

    A mask is the same everywhere, so the label can change the prediction everywhere alike only. A map is a
    learned offset of the shape of ``h`` for each class, added to the output: what an ordinary output layer,
    whose weights differ from place to place, sends back on average for that class. Messages must then have
    the size of the example's.

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
        maps: ``(Y, X)``: take the context as maps of this size; None for masks.
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
        maps: tuple[int, int] | None = None,
        name: str = "?",
    ) -> None:
        super().__init__(width, name)
        self.channels = channels
        self.size = maps if width else None
        # (classes, C · Y · X)
        self.table = nn.Parameter(torch.zeros(width, channels * prod(self.size))) if self.size else None
        sizes = [channels if self.size else channels + width, *hidden]
        layers: list[nn.Module] = []
        for a, b in zip(sizes, sizes[1:], strict=False):
            layers += [nn.Conv2d(a, b, kernel, padding=kernel // 2, bias=not norm)]
            layers += [nn.BatchNorm2d(b)] if norm else []
            layers += [activation()]
        last = nn.Conv2d(sizes[-1], channels, kernel, padding=kernel // 2)
        _zero(last)
        self.layers = nn.Sequential(*layers, last)

    def check(self, h: Tensor, c: Tensor | None) -> None:
        if h.ndim != 4 or h.shape[1] != self.channels:
            self._refuse(h, f"(B, {self.channels}, Y, X)")
        if self.size and h.shape[2:] != self.size:
            self._refuse(h, f"(B, {self.channels}, {self.size[0]}, {self.size[1]})")
        super().check(h, c)

    def forward(self, h: Tensor, c: Tensor | None = None) -> Tensor:
        if self.width:
            assert c is not None
            try:
                planes = encode(c, self.width, h)  # (B, width)
            except RuntimeError:
                raise index_error(c, self.width, self.name) from None
            if self.table is not None:
                offset = planes.to(self.table.dtype) @ self.table
                return self.layers(h) + offset.view(-1, *h.shape[1:])
            while planes.ndim < h.ndim:
                planes = planes.unsqueeze(-1)
            h = torch.cat([h, planes.expand(-1, -1, *h.shape[2:])], dim=1)  # (B, C + width, Y, X)
        return self.layers(h)


def dense(hidden: Sequence[int] = (), *, norm: bool = True, activation: Activation = nn.ReLU) -> ModelFactory:
    """Return a factory of `DenseModel`."""

    def build(site: Site, width: int) -> GradientModel:
        if len(site.shape) < 2:
            raise CutError(f"interface '{site.name}': a message of shape {site.shape} has no features")
        return DenseModel(
            site.shape[-1],
            hidden,
            width,
            norm=norm,
            activation=activation,
            receiver=site.receiver or 0,
            name=site.name,
        )

    return build


def convolutional(
    hidden: Sequence[int] = (),
    *,
    kernel: int = 5,
    norm: bool = True,
    activation: Activation = nn.ReLU,
    maps: bool = False,
) -> ModelFactory:
    """Return a factory of `ConvolutionalModel`; ``maps`` takes the context as maps of the example's size."""

    def build(site: Site, width: int) -> GradientModel:
        if len(site.shape) != 4:
            raise CutError(
                f"interface '{site.name}': a convolutional model needs messages (B, C, Y, X), "
                f"the example has {site.shape}; use models.dense"
            )
        return ConvolutionalModel(
            site.shape[1],
            hidden,
            width,
            kernel=kernel,
            norm=norm,
            activation=activation,
            maps=(site.shape[2], site.shape[3]) if maps else None,
            name=site.name,
        )

    return build


def like_layer() -> ModelFactory:
    """Return a factory of models structured like the layer below the cut (Bisong 2017).

    One hidden layer with as many units (channels) as the layer has, its kernel size, its activation,
    and BatchNorm if it has that; then a linear layer.
    """

    def build(site: Site, width: int) -> GradientModel:
        parts = list(site.module.modules())
        norm = any(isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d) for m in parts)
        nonlinear = [m for m in parts if type(m).__module__ == nn.ReLU.__module__]
        activation: Activation = (lambda: copy.deepcopy(nonlinear[-1])) if nonlinear else nn.ReLU
        if len(site.shape) != 4:
            return dense((site.shape[-1],), norm=norm, activation=activation)(site, width)
        kernels = [m.kernel_size[0] for m in parts if isinstance(m, nn.Conv2d)]
        kernel = kernels[-1] if kernels and kernels[-1] % 2 else 5
        return convolutional((site.shape[1],), kernel=kernel, norm=norm, activation=activation)(site, width)

    return build
