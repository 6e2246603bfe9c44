"""The reference networks, against sizes counted by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from synthgrad.core import ConfigError
from synthgrad.tasks import cut_names, fully_connected


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
