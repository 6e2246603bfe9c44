"""Proposed cuts: the blocks of a network, at whatever level they are."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import synthgrad as sg
from synthgrad.core import CutError


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x)


class Backbone(nn.Module):
    """Stages of layers, in lists within a list, as in Swin or ResNet."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(4, 6)
        self.stages = nn.ModuleList(nn.ModuleList(Layer() for _ in range(2)) for _ in range(2))
        self.norm = nn.LayerNorm(6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for stage in self.stages:
            for layer in stage:  # type: ignore[attr-defined]
                x = layer(x)
        return self.norm(x)


class Classifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone, self.head = Backbone(), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"scores": self.head(self.backbone(x))}


class Listed(nn.Module):
    """A list of single layers, none of which has parts."""

    def __init__(self) -> None:
        super().__init__()
        self.layers, self.head = nn.ModuleList(nn.Linear(4, 4) for _ in range(3)), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.relu(layer(x))
        return self.head(x)


def test_blocks_are_found_in_lists_within_lists() -> None:
    found = sg.propose_cuts(Classifier(), torch.randn(5, 4))
    assert found == [f"backbone.stages.{j}.{k}" for j in range(2) for k in range(2)]


def test_a_list_of_single_layers_is_opened() -> None:
    assert sg.propose_cuts(Listed(), torch.randn(5, 4)) == ["layers.0", "layers.1", "layers.2"]


def test_layers_of_an_encoder() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True)
    model = nn.Sequential(nn.TransformerEncoder(layer, 3, enable_nested_tensor=False), nn.Linear(8, 3))
    assert sg.propose_cuts(model, torch.randn(2, 4, 8)) == [f"0.layers.{k}" for k in range(3)]


def test_a_network_of_a_single_module_has_none() -> None:
    with pytest.raises(CutError, match="name the cuts yourself"):
        sg.propose_cuts(nn.Linear(4, 3), torch.randn(5, 4))


MODELS = {
    "gpt2": "transformer.h.{}",
    "llama": "model.layers.{}",
    "bert": "bert.encoder.layer.{}",
    "vit": "vit.layers.{}",
    "resnet": "resnet.encoder.stages.{}",
    "swin": "swin.encoder.layers.0.blocks.{}",
}


@pytest.mark.slow(reason="imports transformers")
@pytest.mark.parametrize("name", MODELS)
def test_models_from_a_library(name: str) -> None:
    pytest.importorskip("transformers")
    from synthgrad.lab.bench.networks.zoo import ZOO

    entry = next(e for n, e in ZOO.items() if name in n.lower().replace("-", ""))
    found = sg.propose_cuts(entry.model(), entry.batches((4,))[0][0])
    assert any(n.startswith(MODELS[name].format(0)) for n in found)
