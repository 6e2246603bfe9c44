"""Small classifiers on a message: what a local loss is taken of, and what a critic sees the loss by."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from ..core import CutError, Site

__all__ = ["Head", "HeadFactory", "convolutional_head", "linear_head"]


class Head(nn.Module):
    """A classifier on ``h``.

    Args:
        layers: take ``h``, return scores ``(B, classes)``.
        shape: what ``h`` is like without its batch dimension.
    """

    def __init__(self, layers: nn.Module, shape: Sequence[int]) -> None:
        super().__init__()
        self.layers = layers
        self.shape = tuple(shape)

    def forward(self, h: Tensor) -> Tensor:
        """Return the scores, ``(B, classes)``."""
        return self.layers(h)


HeadFactory = Callable[[Site, int], Head]


def linear_head(hidden: Sequence[int] = (), *, pool: int = 2, norm: bool = True) -> HeadFactory:
    """Return a factory of fully connected heads; images are averaged to ``pool × pool`` before.

    Args:
        hidden: widths of hidden layers, each Linear–(BatchNorm)–ReLU; ``()`` is linear.
        pool: places that an image is averaged to, along each side.
        norm: BatchNorm in the hidden layers.
    """

    def build(site: Site, classes: int) -> Head:
        features, first = _flattened(site, pool)
        return Head(nn.Sequential(*first, *_dense([features, *hidden], classes, norm=norm)), site.shape[1:])

    return build


def convolutional_head(channels: int | None = None, *, pool: int = 2, norm: bool = True) -> HeadFactory:
    """Return a factory of heads with one 3×3 convolution before the average (Belilovsky et al. 2019).

    Args:
        channels: of the convolution; as many as ``h`` has where it is None.
        pool: places that the image is averaged to, along each side.
        norm: BatchNorm after the convolution.
    """

    def build(site: Site, classes: int) -> Head:
        if len(site.shape) != 4:
            raise CutError(
                f"interface '{site.name}': a convolutional head needs messages (B, C, Y, X), the example has "
                f"{site.shape}; use heads.linear_head"
            )
        width = channels or site.shape[1]
        layers: list[nn.Module] = [nn.Conv2d(site.shape[1], width, 3, padding=1, bias=not norm)]
        layers += [nn.BatchNorm2d(width)] if norm else []
        layers += [nn.ReLU(), nn.AdaptiveAvgPool2d(pool), nn.Flatten()]
        return Head(nn.Sequential(*layers, nn.Linear(width * pool * pool, classes)), site.shape[1:])

    return build


def _flattened(site: Site, pool: int) -> tuple[int, list[nn.Module]]:
    """Return the number of features that ``h`` has when it is flat, and what makes it so."""
    shape = site.shape[1:]
    if not shape:
        raise CutError(f"interface '{site.name}': a message of shape {site.shape} has no features")
    if len(shape) == 3:
        return shape[0] * pool * pool, [nn.AdaptiveAvgPool2d(pool), nn.Flatten()]
    size = 1
    for n in shape:
        size *= n
    return size, [nn.Flatten()] if len(shape) > 1 else []


def _dense(sizes: Sequence[int], classes: int, *, norm: bool) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for a, b in zip(sizes, sizes[1:], strict=False):
        layers += [nn.Linear(a, b, bias=not norm)]
        layers += [nn.BatchNorm1d(b)] if norm else []
        layers += [nn.ReLU()]
    return [*layers, nn.Linear(sizes[-1], classes)]
