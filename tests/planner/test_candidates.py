from __future__ import annotations

from collections import OrderedDict
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import synthgrad as sg
from synthgrad.core import ConfigError, CutError
from synthgrad.lab.tasks.gpt import gpt
from synthgrad.lab.tasks.networks import convolutional, cut_names, fully_connected
from synthgrad.planner.candidates import check_candidates, find_candidates
from tests.networks import CASES


class TwoSequences(nn.Module):
    """Features and a classifier, as in VGG: pooling and activations belong to the layer before."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.Conv2d(4, 4, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
        )
        self.classifier = nn.Sequential(nn.Linear(64, 8), nn.ReLU(), nn.Dropout(), nn.Linear(8, 5))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).flatten(1))


def tokens() -> Tensor:
    return torch.randint(0, 32, (4, 8))


def hub(kind: str, **options: Any) -> nn.Module:
    transformers = pytest.importorskip("transformers", reason="needs the package transformers")
    sizes = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 8}
    if kind == "GPT2":
        sizes = {"n_layer": 2, "n_head": 2, "n_embd": 8, "vocab_size": 32, "n_positions": 8}
        sizes |= {"bos_token_id": 0, "eos_token_id": 0}
        return transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, **options))
    sizes |= {"intermediate_size": 16, "image_size": 8, "patch_size": 4}
    return transformers.ViTForImageClassification(transformers.ViTConfig(**sizes, **options))


def test_layers_of_the_reference_networks() -> None:
    dense = fully_connected((6,), 10, 9, 8)
    assert find_candidates(dense, torch.ones(4, 6)) == cut_names(dense)
    images = convolutional((3, 8, 8), 10, 4, 4)
    assert find_candidates(images, torch.ones(2, 3, 8, 8)) == cut_names(images)
    blocks = gpt(32, width=8, blocks=3, heads=2, context=8)
    assert find_candidates(blocks, tokens()) == ["embedding", "block1", "block2", "block3"]


def test_layers_of_transformers() -> None:
    model = hub("GPT2", tie_word_embeddings=False)
    assert find_candidates(model, {"input_ids": tokens()}) == ["transformer.h.0", "transformer.h.1"]
    layers = find_candidates(hub("ViT"), torch.ones(2, 3, 8, 8))
    assert [name.rsplit(".", 1)[1] for name in layers] == ["0", "1"]


def test_a_sequence_is_cut_where_the_next_layer_with_weights_begins() -> None:
    assert find_candidates(CASES["linear"].model(), CASES["linear"].batch()[0]) == ["1", "3"]
    assert find_candidates(TwoSequences(), torch.ones(2, 3, 8, 8)) == [
        "features.2",
        "features",
        "classifier.2",
    ]
    assert find_candidates(CASES["nested"].model(), CASES["nested"].batch()[0]) == ["0.1", "0.3", "1"]


def test_what_has_nothing_to_train_above_it_is_no_candidate() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3), nn.Softmax(-1))
    assert find_candidates(model, torch.ones(2, 3)) == ["1"]


def test_layers_in_a_list_and_steps_of_forward() -> None:
    class Listed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(3, 3) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            for layer in self.layers:
                x = layer(x).relu()
            return x

    assert find_candidates(Listed(), torch.ones(2, 3)) == ["layers.0", "layers.1"]


@pytest.mark.parametrize(("case", "names"), [("two_headed", ["trunk"]), ("residual", ["stem"])])
def test_where_branches_cross_there_is_none(case: str, names: list[str]) -> None:
    assert find_candidates(CASES[case].model(), CASES[case].batch()[0]) == names


def test_every_candidate_is_a_cut_that_decouple_makes() -> None:
    for case in CASES.values():
        x = case.batch()[0]
        names = find_candidates(case.model(), x)
        net = sg.decouple(case.model(), names, sg.SyntheticGradient(), x)
        assert list(net.graph.sites) == names
        check_candidates(net.graph)


def test_no_cut_lies_between_tied_weights() -> None:
    model = gpt(32, width=8, blocks=2, heads=2, context=8, tied=True)
    says = r"parameter 'embedding.weight' is used in the part that ends in '\w+' and in the one that ends in the output, .*untie"
    with pytest.raises(CutError, match=says) as caught:
        find_candidates(model, tokens())
    assert "\n" not in str(caught.value)
    lower = nn.Sequential(OrderedDict(a=nn.Linear(3, 3), b=nn.Linear(3, 3), c=nn.Linear(3, 3)))
    lower.b.weight = lower.a.weight  # type: ignore[union-attr]
    assert find_candidates(lower, torch.ones(2, 3)) == ["b"]


def test_cuts_of_a_users_own_that_make_no_stages_are_refused() -> None:
    def graph(model: nn.Module, at: list[str], x: Tensor) -> sg.core.Graph:
        return sg.decouple(model, at, sg.SyntheticGradient(), x).graph

    case = CASES["two_headed"]
    with pytest.raises(ConfigError, match="make no stages: its modules branch"):
        check_candidates(graph(case.model(), ["trunk", "inner"], case.batch()[0]))
    case = CASES["linear"]
    with pytest.raises(ConfigError, match="the part that ends in '1' has no parameters"):
        check_candidates(graph(case.model(), ["0", "1"], case.batch()[0]))


@pytest.mark.parametrize(
    ("model", "says"),
    [
        (None, "got None as model, expected a torch.nn.Module"),
        (nn.Linear(3, 2), "Linear cannot be cut into stages: no cut could be proposed"),
        (nn.Sequential(nn.Linear(3, 2), nn.ReLU()), "Sequential cannot be cut into stages"),
        (nn.Sequential(nn.LazyLinear(2), nn.Linear(2, 2)), "has no shape yet"),
    ],
)
def test_a_model_without_candidates_is_refused_with_the_reason(model: Any, says: str) -> None:
    with pytest.raises(CutError, match=says) as caught:
        find_candidates(model, torch.ones(2, 3))
    assert "\n" not in str(caught.value)


def test_a_decoupled_network_is_refused() -> None:
    case = CASES["linear"]
    net = sg.decouple(case.model(), case.at, sg.SyntheticGradient(), case.batch()[0])
    with pytest.raises(CutError, match="decoupled already"):
        find_candidates(net, case.batch()[0])
