"""One value per channel has no variance: BatchNorm in a rule's own layers says so by the interface's name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import synthgrad as sg
from synthgrad.core import Info, ShapeError, Site
from synthgrad.rules import SyntheticInput, convolutional_input, dense_input, heads, models

LABEL = torch.tensor([1])
Make = Callable[[bool], Any]  # with BatchNorm or without

RULES: dict[str, tuple[Make, tuple[int, ...]]] = {
    "dense": (lambda norm: sg.SyntheticGradient((5,), norm=norm), (6,)),
    "one token": (lambda norm: sg.SyntheticGradient((5,), norm=norm), (1, 6)),
    "one pixel": (lambda norm: sg.SyntheticGradient((5,), norm=norm), (6, 1, 1)),
    "one place": (lambda norm: sg.SyntheticGradient(model=models.convolutional((5,), norm=norm)), (1, 6)),
    "linear head": (lambda norm: sg.LocalLoss(3, heads.linear_head((5,), norm=norm)), (6,)),
    "linear head, image": (lambda norm: sg.LocalLoss(3, heads.linear_head((5,), norm=norm)), (6, 4, 4)),
    "convolutional head": (lambda norm: sg.LocalLoss(3, heads.convolutional_head(5, norm=norm)), (6, 1, 1)),
    "critic": (lambda norm: sg.Sobolev(3, (5,), norm=norm), (6,)),
    "hand over": (lambda norm: sg.HandOver(sg.SyntheticGradient((5,), norm=norm)), (6,)),
}
every_rule = pytest.mark.parametrize("name", RULES)


def bound(name: str, norm: bool = True) -> tuple[Any, torch.Tensor]:
    make, shape = RULES[name]
    site = Site("cut", (4, *shape), torch.float32, torch.device("cpu"), nn.Identity())
    return make(norm).bind(site), torch.randn(1, *shape)


@every_rule
def test_a_batch_of_one_is_refused_by_name(name: str) -> None:
    rule, h = bound(name)
    many = h.repeat(2, *[1] * (h.ndim - 1))
    rule.check(many, Info(context=LABEL.repeat(2)))
    for _ in range(2):  # what has been found to fit is remembered
        with pytest.raises(
            ShapeError, match=r"interface 'cut': .* one value per channel .*drop_last=True.*norm=False"
        ):
            rule.check(h, Info(context=LABEL))
    rule.check(many, Info(context=LABEL.repeat(2)))


@every_rule
def test_without_batchnorm_or_in_evaluation_one_will_do(name: str) -> None:
    rule, h = bound(name, norm=False)
    rule.check(h, Info(context=LABEL))
    assert rule.credit(h, Info(context=LABEL)).delta.shape == h.shape
    rule, h = bound(name)
    rule.eval()
    rule.check(h, Info(context=LABEL))
    assert rule.credit(h, Info(context=LABEL)).delta.shape == h.shape
    rule.train()  # a mode is no matter of shape
    with pytest.raises(ShapeError, match="one value per channel"):
        rule.check(h, Info(context=LABEL))


@pytest.mark.parametrize(
    ("rule", "shape"),
    [
        (sg.SyntheticGradient((5,)), (3, 6)),
        (sg.SyntheticGradient((5,)), (6, 2, 1)),
        (sg.LocalLoss(3), (6,)),
        (sg.LocalLoss(3, heads.convolutional_head()), (6, 2, 1)),
        (sg.SyntheticGradient(), (6,)),
    ],
)
def test_one_example_with_several_values_is_enough(rule: Any, shape: tuple[int, ...]) -> None:
    made = rule.bind(Site("cut", (4, *shape), torch.float32, torch.device("cpu"), nn.Identity()))
    h = torch.randn(1, *shape)
    made.check(h, Info(context=LABEL))
    assert made.credit(h, Info(context=LABEL)).delta.shape == h.shape


@pytest.mark.parametrize(
    ("model", "inputs"), [(dense_input((5,)), (6,)), (dense_input((5,)), (2, 3, 3)), (convolutional_input((5,)), (2, 1, 1))]
)  # fmt: skip
def test_synthetic_inputs_say_it_too(model: Any, inputs: tuple[int, ...]) -> None:
    shape = (4, 6, 3, 3) if len(inputs) == 3 else (4, 6)
    site = Site("cut", shape, torch.float32, torch.device("cpu"), nn.Identity(), (4, *inputs))
    rule = SyntheticInput((), model=model).bind(site)
    rule.check(torch.randn(2, *inputs), Info())
    with pytest.raises(ShapeError, match="interface 'cut': .* one value per channel"):
        rule.check(torch.randn(1, *inputs), Info())
    rule.eval().check(torch.randn(1, *inputs), Info())


def test_one_example_has_places_enough_for_a_convolutional_input() -> None:
    site = Site("cut", (4, 6, 3, 3), torch.float32, torch.device("cpu"), nn.Identity(), (4, 2, 3, 3))
    rule = SyntheticInput((), model=convolutional_input((5,))).bind(site)
    x = torch.randn(1, 2, 3, 3)
    rule.check(x, Info())
    assert rule.supply(x, Info()).h.shape == (1, 6, 3, 3)


def test_the_last_batch_of_an_epoch_in_the_plain_loop() -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    net = sg.decouple(model, ["1"], sg.SyntheticGradient((5,), context=3), torch.randn(4, 6))
    with pytest.raises(ShapeError, match="interface '1': got a message of shape"):
        net(torch.randn(1, 6), context=LABEL)
