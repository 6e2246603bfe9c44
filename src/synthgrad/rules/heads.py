"""Small classifiers on a message: what a local loss is taken of, and what a critic sees the loss by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from torch import Tensor, nn

from ..core import CutError, Site
from ..core.given import widths_of
from .head import Head, HeadFactory
from .spatial import average, check_norm, convolution, norm_of, num_space_dims
from .token_head import token_head

__all__ = ["Head", "HeadFactory", "convolutional_head", "linear_head", "token_head"]


class _Flat(Head):
    """A head on all of ``h``."""

    def check(self, h: Tensor, name: str) -> None:
        if h.shape[1:] != self.shape:
            raise self.shape_error(h, self.shape, name)
        check_norm(self, h.shape[0], h, name)


class _Averaged(Head):
    """A head on the average of ``h`` over its places; the layers are fed with the features in dimension 1."""

    def __init__(
        self, layers: nn.Module, shape: Sequence[int], features_at: int, *, norm_by_place: bool
    ) -> None:
        super().__init__(layers, shape)
        self.features_at = features_at
        self.norm_by_place = norm_by_place  # BatchNorm sees every place, not examples alone

    def check(self, h: Tensor, name: str) -> None:
        at = self.features_at
        features = self.shape[at - 1]
        if h.ndim != len(self.shape) + 1 or h.shape[at] != features:
            raise self.shape_error(h, [*["_"] * (at - 1), features, *["_"] * (len(self.shape) - at)], name)
        check_norm(self, h.numel() // features if self.norm_by_place else h.shape[0], h, name)

    def forward(self, h: Tensor) -> Tensor:
        return self.layers(h if self.features_at == 1 else h.movedim(self.features_at, 1))


@dataclass(frozen=True)
class _Linear:
    hidden: tuple[int, ...] = ()
    pool: int = 2
    norm: bool = True

    def __call__(self, site: Site, classes: int) -> Head:
        shape, at, dims = site.shape[1:], site.features_at, num_space_dims(site)
        if dims:
            features, first = shape[at - 1] * self.pool**dims, [average(dims, self.pool), nn.Flatten()]
        else:
            features, first = prod(shape), [nn.Flatten()] if len(shape) > 1 else []
        layers = nn.Sequential(*first, *_dense([features, *self.hidden], classes, norm=self.norm))
        return _Averaged(layers, shape, at, norm_by_place=False) if dims else _Flat(layers, shape)


@dataclass(frozen=True)
class _Convolutional:
    channels: int | None = None
    pool: int = 2
    norm: bool = True

    def __call__(self, site: Site, classes: int) -> Head:
        dims = len(site.shape) - 2
        if dims not in (1, 2, 3):
            raise CutError(
                f"interface '{site.name}': a convolutional head needs messages (B, C, L), (B, C, Y, X) or "
                f"(B, C, Z, Y, X), the example has {site.shape}; use heads.linear_head"
            )
        at = site.features_at
        width = self.channels or site.shape[at]
        layers: list[nn.Module] = [convolution(dims, site.shape[at], width, 3, bias=not self.norm)]
        layers += [norm_of(dims, width)] if self.norm else []
        layers += [nn.ReLU(), average(dims, self.pool), nn.Flatten()]
        layers += [nn.Linear(width * self.pool**dims, classes)]
        return _Averaged(nn.Sequential(*layers), site.shape[1:], at, norm_by_place=True)


def linear_head(hidden: Sequence[int] = (), *, pool: int = 2, norm: bool = True) -> HeadFactory:
    """Return a factory of fully connected heads; images, volumes and ``(B, C, L)`` are averaged before.

    Args:
        hidden: widths of hidden layers, each Linear–(BatchNorm)–ReLU; ``()`` is linear.
        pool: places that such a message is averaged to, along each side.
        norm: BatchNorm in the hidden layers.
    """
    return _Linear(widths_of(hidden), pool, norm)


def convolutional_head(channels: int | None = None, *, pool: int = 2, norm: bool = True) -> HeadFactory:
    """Return a factory of heads with one convolution of size 3 before the average (Belilovsky et al. 2019).

    It goes over all dimensions of the messages but batch and features: of ``(B, T, H)`` over ``T``.

    Args:
        channels: of the convolution; as many as ``h`` has where it is None.
        pool: places that the message is averaged to, along each side.
        norm: BatchNorm after the convolution.
    """
    return _Convolutional(channels, pool, norm)


def _dense(sizes: Sequence[int], classes: int, *, norm: bool) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for a, b in zip(sizes, sizes[1:], strict=False):
        layers += [nn.Linear(a, b, bias=not norm)]
        layers += [nn.BatchNorm1d(b)] if norm else []
        layers += [nn.ReLU()]
    return [*layers, nn.Linear(sizes[-1], classes)]
