"""Networks go into files whole, with whatever factory their rules were made by."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import synthgrad as sg
from synthgrad.core import Info, Rule, Site
from synthgrad.rules import SyntheticInput, convolutional_input, dense_input, heads, models

LABELS = torch.tensor([0, 1, 2, 2])
RULES: dict[str, Callable[[], Rule]] = {
    "default": lambda: sg.SyntheticGradient(context=3),
    "dense": lambda: sg.SyntheticGradient(context=3, model=models.dense((5,), activation=nn.Tanh)),
    "convolutional": lambda: sg.SyntheticGradient(context=3, model=models.convolutional((5,), maps=True)),
    "like layer": lambda: sg.SyntheticGradient(context=3, model=models.like_layer()),
    "local loss": lambda: sg.LocalLoss(3),
    "local loss, own": lambda: sg.LocalLoss(3, loss=F.cross_entropy),
    "local loss, module": lambda: sg.LocalLoss(3, loss=nn.CrossEntropyLoss(weight=torch.ones(3))),
    "linear head": lambda: sg.LocalLoss(3, heads.linear_head((5,), pool=1)),
    "convolutional head": lambda: sg.LocalLoss(3, heads.convolutional_head(5)),
    "critic": lambda: sg.Sobolev(3, (5,)),
    "hand over": lambda: sg.HandOver(sg.LocalLoss(3), warm_up=3),
    "head gradient": lambda: sg.rules.HeadGradient(3, heads.linear_head((5,)), every=1, activations=True),
}


def network() -> nn.Module:
    torch.manual_seed(0)
    low = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.LeakyReLU(0.3))
    return nn.Sequential(low, nn.Flatten(), nn.Linear(100, 3))


def from_file(value: Any) -> Any:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("again", [from_file, copy.deepcopy], ids=["file", "copy"])
def test_a_network_from_a_file_gives_the_same_credits(name: str, again: Callable[[Any], Any]) -> None:
    x = torch.randn(4, 2, 5, 5)
    net = sg.decouple(network(), ["0"], RULES[name](), x)
    for p in net.rules.parameters():
        nn.init.normal_(p, std=0.2)
    twin = again(net)
    for one in (net, twin):
        one.zero_grad()
        F.cross_entropy(one(x, context=LABELS), LABELS).backward()
    grads = [{n: p.grad for n, p in one.named_parameters()} for one in (net, twin)]
    assert grads[0]["model.0.0.weight"] is not None
    for name, grad in grads[0].items():
        assert grad is not None, name
        assert torch.equal(grad, grads[1][name]), name  # type: ignore[arg-type]


@pytest.mark.parametrize("name", RULES)
def test_a_pattern_from_a_file_builds_the_same_rule(name: str) -> None:
    layer = network()[0]  # type: ignore[index]
    site = Site("cut", (4, 4, 5, 5), torch.float32, torch.device("cpu"), layer)
    h = torch.randn(4, 4, 5, 5)
    deltas = []
    pattern = RULES[name]()
    for rule in (pattern, pickle.loads(pickle.dumps(pattern))):
        torch.manual_seed(2)
        bound = rule.bind(site)
        for p in bound.parameters():
            nn.init.normal_(p, std=0.2)
        deltas.append(bound.credit(h, Info(context=LABELS)).delta)
    assert deltas[0].abs().max() > 0
    assert torch.equal(*deltas)


@pytest.mark.parametrize("model", [None, dense_input((5,)), convolutional_input((5,), kernel=3)])
def test_synthetic_inputs_go_into_files(model: Any) -> None:
    x = torch.randn(4, 2, 5, 5)
    inputs = SyntheticInput() if model is None else SyntheticInput((), model=model)
    net = sg.decouple(network(), ["0"], sg.SyntheticGradient(), x, inputs=inputs)
    rules = [one.interfaces["0"].input_rule for one in (net, from_file(net))]
    assert torch.equal(*(rule.supply(x, Info()).h for rule in rules))
    for rule in rules:
        rule.check(x, Info())
