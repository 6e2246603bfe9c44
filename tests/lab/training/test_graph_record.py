"""The decoupled graph in a record: modules, their inputs, and the rules at their ends."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import synthgrad as sg
from synthgrad.lab.tasks import cut_names, fully_connected
from synthgrad.lab.training.graph_record import describe_graph
from tests.networks import CASES, CLASSES


def described(case: str, rule: sg.Rule | None = None) -> dict[str, Any]:
    made = CASES[case]
    net = sg.decouple(made.model(), made.at, rule or sg.SyntheticGradient(), made.batch()[0])
    return describe_graph(net, "in-process")


def test_a_chain() -> None:
    model = fully_connected((1, 4, 4), CLASSES, 3, 8)
    net = sg.decouple(model, cut_names(model), sg.SyntheticGradient((6,), CLASSES), torch.randn(2, 1, 4, 4))
    assert describe_graph(net, "in-process") == {
        "engine": "in-process",
        "modules": [
            {
                "name": "layer1",
                "ends": ["layer1"],
                "inputs": [],
                "parts": ["layer1"],
                "num_parameters": 16 * 8 + 8 + 2 * 8,
            },
            {
                "name": "layer2",
                "ends": ["layer2"],
                "inputs": ["layer1"],
                "parts": ["layer2"],
                "num_parameters": 8 * 8 + 8 + 2 * 8,
            },
            {
                "name": "output",
                "ends": ["output"],
                "inputs": ["layer2"],
                "parts": ["output"],
                "num_parameters": 8 * CLASSES + CLASSES,
            },
        ],
        "interfaces": [
            {
                "name": name,
                "shape": [8],
                "rule": f"SyntheticGradient(M with hidden 6, {CLASSES} classes)",
                # h and c enter the first layer without a bias; BatchNorm; the last layer has one
                "num_parameters": (8 + CLASSES) * 6 + 2 * 6 + 6 * 8 + 8,
                "observes": True,
            }
            for name in ("layer1", "layer2")
        ],
    }


def test_a_module_with_two_ends_and_one_with_two_inputs() -> None:
    left_right, head = described("shared_trunk")["modules"]
    assert left_right["ends"] == ["left", "right"]
    assert left_right["name"] == "left+right"
    assert left_right["parts"] == ["trunk", "left", "right"]
    assert (head["inputs"], head["parts"]) == (["left", "right"], ["head"])


def test_an_interface_that_feeds_two_modules() -> None:
    modules = {m["name"]: m for m in described("two_headed")["modules"]}
    assert modules["inner"]["inputs"] == ["trunk"]
    assert set(modules["output"]["inputs"]) == {"trunk", "inner"}
    assert set(modules["output"]["parts"]) == {"first", "second"}


def test_backpropagation_is_one_module() -> None:
    model = CASES["linear"].model()
    graph = describe_graph(model, "in-process")
    assert (graph["engine"], graph["interfaces"]) == ("backprop", [])
    (module,) = graph["modules"]
    assert (module["ends"], module["inputs"], module["parts"]) == (["output"], [], ["0", "2", "4"])
    assert module["num_parameters"] == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("case", CASES)
def test_every_network_has_all_its_parameters_in_some_module_and_is_plain_data(case: str) -> None:
    graph = described(case, sg.NoBackprop())
    assert json.loads(json.dumps(graph)) == graph
    total = sum(p.numel() for p in CASES[case].model().parameters())
    assert sum(m["num_parameters"] for m in graph["modules"]) == total
    assert [i["name"] for i in graph["interfaces"]] == list(CASES[case].at)
    assert {i["num_parameters"] for i in graph["interfaces"]} == {0}
    parts = [part for m in graph["modules"] for part in m["parts"]]
    assert len(set(parts)) == len(parts), "two modules would be shown under one name"


def test_parts_of_a_container_that_is_cut_inside() -> None:
    assert [m["parts"] for m in described("nested")["modules"]] == [["0.0"], ["0.2"], ["0.4"], ["2"]]


class Wrapped(nn.Module):
    """One container in another, with a parameter of its own beside the layers."""

    def __init__(self, *, own: bool) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 4)), nn.Linear(4, 2))
        self.scale = nn.Parameter(torch.ones(())) if own else None

    def forward(self, x: Tensor) -> Tensor:
        h = self.net(x)
        return h if self.scale is None else h * self.scale


@pytest.mark.parametrize(
    ("at", "own", "parts"),
    [
        ("net.0", False, [["0"], ["1"]]),
        ("net.0.1", False, [["0.0"], ["0.2", "1"]]),
        ("net.0.1", True, [["0.0"], ["0.2", "1", "scale"]]),
    ],
)
def test_the_name_of_a_single_container_is_left_out(at: str, own: bool, parts: list[list[str]]) -> None:
    net = sg.decouple(Wrapped(own=own), [at], sg.NoBackprop(), torch.randn(3, 6))
    found = [sorted(m["parts"]) for m in describe_graph(net, "plain")["modules"]]
    assert found == parts
    (module,) = describe_graph(Wrapped(own=own), "plain")["modules"]
    assert sorted(module["parts"]) == ["0", "1", *(["scale"] if own else [])]
