"""Reference networks of the papers: fully connected and convolutional stacks, and where to cut them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from torch import nn

from ...core import ConfigError

__all__ = ["convolutional", "cut_names", "fully_connected"]


def fully_connected(in_shape: Sequence[int], classes: int, layers: int, width: int) -> nn.Sequential:
    """Return a fully connected network of Linear–BatchNorm–ReLU layers and a linear output (DNI §3.1).

    Args:
        in_shape: shape of one input, flattened by the first module.
        classes: number of outputs.
        layers: weight layers, the output layer included; at least 2.
        width: units of a hidden layer.

    Returns:
        A Sequential whose hidden layers are named ``layer1`` …, its output layer ``output``.

    Raises:
        ConfigError: if there is no hidden layer to cut after, or a size is not positive.
    """
    _check_layers(layers)
    if width < 1:
        raise ConfigError(f"width={width}: expected at least 1 unit")
    size = 1
    for n in in_shape:
        size *= n
    blocks: list[tuple[str, nn.Module]] = []
    for k in range(1, layers):
        parts: list[nn.Module] = [nn.Flatten()] if k == 1 else []
        parts += [nn.Linear(size, width), nn.BatchNorm1d(width), nn.ReLU()]
        blocks.append((f"layer{k}", nn.Sequential(*parts)))
        size = width
    blocks.append(("output", nn.Linear(size, classes)))
    return nn.Sequential(OrderedDict(blocks))


def convolutional(in_shape: Sequence[int], classes: int, layers: int, filters: int) -> nn.Sequential:
    """Return a network of convolutional layers and a linear output (DNI §3.1).

    A layer is a 5×5 convolution that keeps the resolution, BatchNorm, ReLU, and a pooling of 3×3 with
    stride 2: maximum in the first layer, average in later ones. The stride of the pooling is not in the
    text that we have; without one the resolution would not fall.

    Args:
        in_shape: ``(C, Y, X)`` of one input.
        classes: number of outputs.
        layers: weight layers, the output layer included; at least 2.
        filters: channels of a hidden layer.

    Returns:
        A Sequential whose hidden layers are named ``layer1`` …, its output layer ``output``.

    Raises:
        ConfigError: if there is no hidden layer to cut after, a size is not positive, or inputs are no images.
    """
    _check_layers(layers)
    if filters < 1:
        raise ConfigError(f"filters={filters}: expected at least 1")
    if len(in_shape) != 3:
        raise ConfigError(
            f"in_shape={tuple(in_shape)}: a convolutional network expects (C, Y, X), an image; take a fully connected "
            "one (--arch fcn), or give your own (--model)"
        )
    channels, *size = in_shape
    blocks: list[tuple[str, nn.Module]] = []
    for k in range(1, layers):
        pool = nn.MaxPool2d(3, 2, 1) if k == 1 else nn.AvgPool2d(3, 2, 1)
        convolution = nn.Conv2d(channels, filters, 5, padding=2)
        blocks.append((f"layer{k}", nn.Sequential(convolution, nn.BatchNorm2d(filters), nn.ReLU(), pool)))
        channels, size = filters, [(n + 1) // 2 for n in size]
    output = nn.Sequential(nn.Flatten(), nn.Linear(filters * size[0] * size[1], classes))
    blocks.append(("output", output))
    return nn.Sequential(OrderedDict(blocks))


def _check_layers(layers: int) -> None:
    if layers < 2:
        raise ConfigError(
            f"layers={layers}: expected at least 2 (the output layer counts), or there is nowhere to cut"
        )


def cut_names(network: nn.Sequential) -> list[str]:
    """Return the names of all layers but the last: a cut after every hidden layer."""
    return [name for name, _ in network.named_children()][:-1]
