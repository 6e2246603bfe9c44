"""True messages in the locked engine: rules learn from the gradient of the loss, whatever modules learn from."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import synthgrad as sg
from synthgrad.core import Credit, Info, Message, Rule
from synthgrad.engines import Locked
from tests.networks import CASES, Case

cases = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, 0.05)


class Misleading(Rule):
    """Gives a wrong credit, and keeps every message that it gets."""

    def __init__(self) -> None:
        super().__init__()
        self.messages: list[Tensor] = []

    def credit(self, h: Tensor, info: Info) -> Credit:
        return Credit(torch.ones_like(h))

    def observe(self, h: Tensor, info: Info, message: Message, pending: tuple[Tensor, ...] = ()) -> None:
        self.messages.append(message.gradient.clone())


def of_backprop(model: nn.Module, case: Case, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    model = copy.deepcopy(model)
    kept: dict[str, Tensor] = {}
    for name in case.at:
        model.get_submodule(name).register_forward_hook(
            lambda m, a, out, name=name: kept.__setitem__(name, out) or out.clone()
        )
    loss = case.criterion(model(x), y)
    grads = torch.autograd.grad(loss, list(kept.values()))
    return {n: g * len(x) for n, g in zip(kept, grads, strict=True)}


@cases
def test_messages_are_those_of_backpropagation_at_the_same_weights(case: Case) -> None:
    net = sg.decouple(case.model(), case.at, Misleading(), case.batch()[0])
    trainer = Locked(net, case.criterion, sgd, true_messages=True)
    for x, y in case.batches(4):
        expected = of_backprop(sg.recouple(net), case, x, y)
        trainer.step(x, y)
        for name, interface in net.interfaces.items():
            rule = interface.rule
            assert isinstance(rule, Misleading)
            assert torch.allclose(rule.messages[-1], expected[name], rtol=1e-10, atol=1e-13)


@cases
def test_modules_learn_as_without(case: Case) -> None:
    """A rule that learns nothing trains the same network, statistics of BatchNorm included."""
    nets = []
    for true in (False, True):
        net = sg.decouple(case.model(), case.at, Misleading(), case.batch()[0])
        trainer = Locked(net, case.criterion, sgd, true_messages=true)
        for x, y in case.batches(4):
            trainer.step(x, y)
        nets.append(net)
    for name, value in nets[0].state_dict().items():
        assert torch.equal(value, nets[1].state_dict()[name]), name


def test_dropout_is_the_same_in_both_passes() -> None:
    model = nn.Sequential(
        nn.Linear(6, 8), nn.Dropout(0.5), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 5)
    ).double()
    case = Case("dropout", lambda: model, ("1",), (6,))
    net = sg.decouple(model, ["1"], Misleading(), case.batch()[0])
    one = sg.decouple(model, ["1"], Misleading(), case.batch()[0])
    x, y = case.batch()
    for trained, true in ((net, True), (one, False)):
        torch.manual_seed(4)
        Locked(trained, case.criterion, sgd, true_messages=true).step(x, y)
    # One interface: what comes back is the true gradient anyway.
    a, b = net.interfaces["1"].rule, one.interfaces["1"].rule
    assert torch.allclose(a.messages[0], b.messages[0])  # type: ignore[union-attr,index]
