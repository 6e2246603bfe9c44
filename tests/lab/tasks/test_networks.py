"""The reference networks, against sizes counted by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from synthgrad.core import ConfigError
from synthgrad.lab.tasks import convolutional, cut_names, fully_connected


def test_names_and_cuts() -> None:
    network = fully_connected((1, 28, 28), 10, 4, 16)
    assert [name for name, _ in network.named_children()] == ["layer1", "layer2", "layer3", "output"]
    assert cut_names(network) == ["layer1", "layer2", "layer3"]


@pytest.mark.parametrize("layers", [2, 3, 6])
def test_every_weight_layer_counts(layers: int) -> None:
    network = fully_connected((1, 4, 4), 10, layers, 8)
    assert sum(isinstance(m, nn.Linear) for m in network.modules()) == layers
    assert len(cut_names(network)) == layers - 1


def test_hidden_layer_is_linear_batchnorm_relu() -> None:
    network = fully_connected((3, 2, 2), 5, 3, 7)
    assert [type(m) for m in network.layer1] == [nn.Flatten, nn.Linear, nn.BatchNorm1d, nn.ReLU]
    assert [type(m) for m in network.layer2] == [nn.Linear, nn.BatchNorm1d, nn.ReLU]
    assert isinstance(network.output, nn.Linear)


@pytest.mark.parametrize(
    ("norm", "kind"), [("batch", nn.BatchNorm1d), ("layer", nn.LayerNorm), ("none", None)]
)
@pytest.mark.parametrize(
    ("activation", "function"), [("relu", nn.ReLU), ("gelu", nn.GELU), ("tanh", nn.Tanh)]
)
def test_norm_and_activation_of_hidden_layers(
    norm: str, kind: type[nn.Module] | None, activation: str, function: type[nn.Module]
) -> None:
    network = fully_connected((3, 2, 2), 5, 3, 7, norm=norm, activation=activation)
    expected = [nn.Linear, *([kind] if kind else []), function]
    assert [type(m) for m in network.layer1] == [nn.Flatten, *expected]
    assert [type(m) for m in network.layer2] == expected
    assert network(torch.zeros(6, 3, 2, 2)).shape == (6, 5)


def test_number_of_parameters() -> None:
    # 12·7+7 and 7·7+7 weights and biases, twice 2·7 of BatchNorm, 7·5+5 of the output.
    assert sum(p.numel() for p in fully_connected((3, 2, 2), 5, 3, 7).parameters()) == 91 + 56 + 28 + 40


def test_output_shape() -> None:
    assert fully_connected((3, 2, 2), 5, 3, 7)(torch.zeros(6, 3, 2, 2)).shape == (6, 5)


def test_seed_decides_the_weights() -> None:
    torch.manual_seed(0)
    first = fully_connected((1, 2, 2), 3, 2, 4)
    torch.manual_seed(0)
    again = fully_connected((1, 2, 2), 3, 2, 4)
    for (name, a), (_, b) in zip(first.named_parameters(), again.named_parameters(), strict=True):
        assert torch.equal(a, b), name


@pytest.mark.parametrize("layers", [1, 0, -3])
def test_too_few_layers_are_refused(layers: int) -> None:
    with pytest.raises(ConfigError, match=f"layers={layers}: expected at least 2"):
        fully_connected((1, 2, 2), 3, layers, 4)


@pytest.mark.parametrize("width", [0, -1])
def test_no_width_is_refused(width: int) -> None:
    with pytest.raises(ConfigError, match=f"width={width}: expected at least 1"):
        fully_connected((1, 2, 2), 3, 2, width)


def test_convolutional_layer_keeps_the_resolution_and_pools() -> None:
    network = convolutional((3, 32, 32), 10, 4, 8)
    kinds = [[type(m) for m in layer] for layer in list(network)[:3]]
    assert kinds[0] == [nn.Conv2d, nn.BatchNorm2d, nn.ReLU, nn.MaxPool2d]
    assert kinds[1] == kinds[2] == [nn.Conv2d, nn.BatchNorm2d, nn.ReLU, nn.AvgPool2d]
    x = torch.zeros(2, 3, 32, 32)
    sizes = []
    for layer in list(network)[:3]:
        assert layer[0](x).shape[2:] == x.shape[2:]
        x = layer(x)
        sizes.append(tuple(x.shape[1:]))
    assert sizes == [(8, 16, 16), (8, 8, 8), (8, 4, 4)]
    assert network.output(x).shape == (2, 10)
    assert cut_names(network) == ["layer1", "layer2", "layer3"]


def test_convolutional_parameters_counted_by_hand() -> None:
    # 5·5·1·4+4 and 5·5·4·4+4 of the convolutions, twice 2·4 of BatchNorm, 7·7·4·10+10 of the output.
    network = convolutional((1, 28, 28), 10, 3, 4)
    assert sum(p.numel() for p in network.parameters()) == 104 + 404 + 16 + 1970


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (((1, 8, 8), 3, 1, 4), "layers=1"),
        (((1, 8, 8), 3, 2, 0), "filters=0"),
        (((64,), 3, 2, 4), r"expected \(C, Y, X\)"),
    ],
)
def test_convolutional_networks_that_cannot_be_are_refused(arguments: tuple[Any, ...], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        convolutional(*arguments)
