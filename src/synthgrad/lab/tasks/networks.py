"""Reference networks of the papers, fully connected and convolutional, and their cuts."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence

from torch import nn

from ...core import ConfigError

__all__ = ["ACTIVATION_MODULES", "NORM_MODULES", "convolutional", "cut_names", "fully_connected"]

#: Normalisations of a fully connected layer by name; each takes the number of units.
NORM_MODULES: dict[str, Callable[[int], nn.Module] | None] = {
    "batch": nn.BatchNorm1d,
    "layer": nn.LayerNorm,
    "none": None,
}
#: Activations by name.
ACTIVATION_MODULES: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "tanh": nn.Tanh,
}


def fully_connected(
    in_shape: Sequence[int],
    classes: int,
    layers: int,
    width: int,
    *,
    norm: str = "batch",
    activation: str = "relu",
) -> nn.Sequential:
    """Build a network of Linear–norm–activation layers and a linear output layer.

    With BatchNorm and ReLU, as by default, it is that of DNI §3.1.

    Args:
        in_shape: shape of one input; the first layer flattens it.
        classes: number of outputs.
        layers: number of weight layers, including the output layer; at least 2.
        width: number of units in a hidden layer.
        norm: one of `NORM_MODULES`.
        activation: one of `ACTIVATION_MODULES`.

    Returns:
        A Sequential with hidden layers named ``layer1``, ``layer2`` … and an output layer named ``output``.

    Raises:
        ConfigError: if there is no hidden layer to cut after, or a size is not positive.
    """
    _check_layers(layers)
    if width < 1:
        raise ConfigError(f"width={width}: expected at least 1")
    size = 1
    for n in in_shape:
        size *= n
    make_norm = NORM_MODULES[norm]
    blocks: list[tuple[str, nn.Module]] = []
    for k in range(1, layers):
        parts: list[nn.Module] = [nn.Flatten()] if k == 1 else []
        parts.append(nn.Linear(size, width))
        if make_norm is not None:
            parts.append(make_norm(width))
        parts.append(ACTIVATION_MODULES[activation]())
        blocks.append((f"layer{k}", nn.Sequential(*parts)))
        size = width
    blocks.append(("output", nn.Linear(size, classes)))
    return nn.Sequential(OrderedDict(blocks))


def convolutional(in_shape: Sequence[int], classes: int, layers: int, filters: int) -> nn.Sequential:
    """Build a network of convolutional layers and a linear output layer (DNI §3.1).

    A layer is a 5×5 convolution that keeps the resolution, BatchNorm, ReLU, and 3×3 pooling with stride 2: maximum
    pooling in the first layer, average pooling in later ones. Our copy of the paper does not name the stride; we chose
    2, because the resolution has to fall.

    Args:
        in_shape: shape of one input, ``(C, Y, X)``.
        classes: number of outputs.
        layers: number of weight layers, including the output layer; at least 2.
        filters: number of channels in a hidden layer.

    Returns:
        A Sequential with hidden layers named ``layer1``, ``layer2`` … and an output layer named ``output``.

    Raises:
        ConfigError: if there is no hidden layer to cut after, a size is not positive, or the inputs are not images.
    """
    _check_layers(layers)
    if filters < 1:
        raise ConfigError(f"filters={filters}: expected at least 1")
    if len(in_shape) != 3:
        raise ConfigError(
            f"in_shape={tuple(in_shape)}: expected (C, Y, X), because a convolutional network takes images; use a fully "
            "connected network (--arch fcn) or your own (--model)"
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
            f"layers={layers}: expected at least 2, one of them the output layer, because cuts lie between layers"
        )


def cut_names(network: nn.Sequential) -> list[str]:
    """Return the names of the hidden layers, which are all but the last: the cuts after every hidden layer."""
    return [name for name, _ in network.named_children()][:-1]
