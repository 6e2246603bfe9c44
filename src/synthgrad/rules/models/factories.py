"""Factories of synthetic gradient models: small values, which can be copied and pickled with the rule."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import nn

from ...core import CutError, Site
from ...core.given import widths_of
from ..spatial import NORMS, kernel_of, num_space_dims
from .base import Activation, GradientModel, ModelFactory
from .class_means_model import ClassMeansModel, check_gain, check_rank, check_rate
from .convolutional_model import ConvolutionalModel
from .dense_model import DenseModel

__all__ = ["class_means", "convolutional", "dense", "like_layer"]

_Convolutions = nn.Conv1d | nn.Conv2d | nn.Conv3d


@dataclass(frozen=True)
class _Dense:
    hidden: tuple[int, ...] = ()
    norm: bool = True
    activation: Activation = nn.ReLU

    def __call__(self, site: Site, width: int) -> GradientModel:
        at = site.features_at
        return DenseModel(
            site.shape[at],
            self.hidden,
            width,
            norm=self.norm,
            activation=self.activation,
            receiver=site.receiver or 0,
            # Counted from the end, so that messages with more dimensions fit too.
            features_at=-1 if at == len(site.shape) - 1 else at,
            name=site.name,
        )


@dataclass(frozen=True)
class _ClassMeans:
    rate: float = 1.0
    gain: float = 3.0
    rank: int | None = None

    def __call__(self, site: Site, width: int) -> GradientModel:
        at = site.features_at
        return ClassMeansModel(
            site.shape[at],
            width,
            rate=self.rate,
            gain=self.gain,
            rank=self.rank,
            features_at=-1 if at == len(site.shape) - 1 else at,
            name=site.name,
        )


@dataclass(frozen=True)
class _Convolutional:
    hidden: tuple[int, ...] = ()
    kernel: int | None = None
    norm: bool = True
    activation: Activation = nn.ReLU
    maps: bool = False

    def __call__(self, site: Site, width: int) -> GradientModel:
        ndim = len(site.shape)
        if not 3 <= ndim <= 5:
            raise CutError(
                f"interface '{site.name}': a convolutional model needs messages (B, C, L), (B, C, Y, X) or "
                f"(B, C, Z, Y, X), the example has {site.shape}; use models.dense"
            )
        at = site.features_at
        size = [n for k, n in enumerate(site.shape) if k not in (0, at)]
        return ConvolutionalModel(
            site.shape[at],
            self.hidden,
            width,
            kernel=kernel_of(self.kernel, ndim - 2),
            norm=self.norm,
            activation=self.activation,
            maps=size if self.maps else None,
            space_dims=ndim - 2,
            features_at=at,
            name=site.name,
        )


@dataclass(frozen=True)
class _LikeLayer:
    def __call__(self, site: Site, width: int) -> GradientModel:
        parts = list(site.module.modules())
        norm = any(isinstance(m, NORMS) for m in parts)
        nonlinear = [m for m in parts if type(m).__module__ == nn.ReLU.__module__]
        activation: Activation = _CopyOf(nonlinear[-1]) if nonlinear else nn.ReLU
        hidden = (site.shape[site.features_at],)
        dims = num_space_dims(site)
        if not dims:
            return _Dense(hidden, norm, activation)(site, width)
        convolutions = [m for m in parts if isinstance(m, _Convolutions)]
        kernels = [m.kernel_size[0] for m in convolutions if len(m.kernel_size) == dims]
        kernel = kernels[-1] if kernels and kernels[-1] % 2 else None
        return _Convolutional(hidden, kernel, norm, activation)(site, width)


@dataclass(frozen=True)
class _CopyOf:
    module: nn.Module = field(repr=False)

    def __call__(self) -> nn.Module:
        return copy.deepcopy(self.module)


def dense(hidden: Sequence[int] = (), *, norm: bool = True, activation: Activation = nn.ReLU) -> ModelFactory:
    """Return a factory of `DenseModel`, on the features wherever the messages have them."""
    return _Dense(widths_of(hidden), norm, activation)


def class_means(*, rate: float = 1.0, gain: float = 3.0, rank: int | None = None) -> ModelFactory:
    """Return a factory of `ClassMeansModel`: linear, with a running mean of the messages of each class.

    Args:
        rate: share of a batch's mean error that is taken away, above 0 up to 1.
        gain: factor on the linear part, above 0.
        rank: of the linear part, which then takes ``2 rank / H`` of the products; 0 for a diagonal; None for any matrix.

    Raises:
        ConfigError: if a number is out of its range.
    """
    check_rate(rate)
    check_gain(gain)
    check_rank(rank)
    return _ClassMeans(rate, gain, rank)


def convolutional(
    hidden: Sequence[int] = (),
    *,
    kernel: int | None = None,
    norm: bool = True,
    activation: Activation = nn.ReLU,
    maps: bool = False,
) -> ModelFactory:
    """Return a factory of `ConvolutionalModel`, over all dimensions of the messages but batch and features.

    Of tokens, ``(B, T, H)``, it goes over ``T``.

    Args:
        hidden: channels of the hidden layers.
        kernel: odd size of the kernels; None for 5, and 3 in volumes.
        norm: BatchNorm in the hidden layers.
        activation: makes the hidden layers' activation.
        maps: take the context as maps of the example's size.

    Raises:
        ConfigError: if the kernel is not odd.
    """
    kernel_of(kernel, 2)
    return _Convolutional(widths_of(hidden), kernel, norm, activation, maps)


def like_layer() -> ModelFactory:
    """Return a factory of models structured like the layer below the cut (Bisong 2017).

    One hidden layer with as many units (channels) as the layer has, its kernel size, its activation,
    and BatchNorm if it has that; then a linear layer.
    """
    return _LikeLayer()
