"""The engine with lags against the same thing written out by hand."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import synthgrad as sg
from synthgrad.core import ConfigError, Decoupled
from synthgrad.engines import InProcess, Lag
from tests.networks import CASES, CLASSES

STEPS = 12


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, 0.2)


def make(at: tuple[str, ...] = ("1",)) -> Decoupled:
    case = CASES["linear"]
    return sg.decouple(
        case.model(), at, sg.SyntheticGradient(context=CLASSES, learned_table=True), case.batch()[0]
    )


def by_hand(forward: int, observe: int) -> Decoupled:
    """Two modules, one interface: module 2 works on the batch of `forward` steps ago, M learns later still."""
    net = make()
    model, rule = net.model, net.rules["1"]
    below, above = list(model[:2].parameters()), list(model[2:].parameters())  # type: ignore[index,union-attr]
    opt_below, opt_above = sgd(below), sgd(above)
    opt_rule = sgd(rule.parameters())
    up: list[tuple[Tensor, Tensor]] = []
    down: list[tuple[int, Tensor, Tensor, Tensor]] = []
    for step, (x, y) in enumerate(CASES["linear"].batches(STEPS)):
        size = len(y)
        h = model[:2](x)  # type: ignore[index,operator]
        delta = rule.model(h.detach(), y).detach()  # type: ignore[operator,union-attr]
        opt_below.zero_grad()
        h.backward(delta / size)
        opt_below.step()
        up.append((h.detach(), y))
        if len(up) > forward:
            old_h, old_y = up.pop(0)
            leaf = old_h.clone().requires_grad_()
            opt_above.zero_grad()
            F.cross_entropy(model[2:](leaf), old_y).backward()  # type: ignore[index,operator]
            assert leaf.grad is not None
            down.append((step + observe, old_h, old_y, leaf.grad * size))
            while down and down[0][0] <= step:
                _, old, c, message = down.pop(0)
                opt_rule.zero_grad()
                (rule.model(old, c) - message).square().sum().div(size).backward()  # type: ignore[operator,union-attr]
                opt_rule.step()
            opt_above.step()
    return net


@pytest.mark.parametrize(("forward", "observe"), [(0, 0), (1, 0), (3, 0), (0, 1), (0, 4), (2, 3)])
def test_lags_equal_the_same_written_out(forward: int, observe: int) -> None:
    net = make()
    trainer = InProcess(net, F.cross_entropy, sgd, lags={"1": Lag(forward, observe)})
    for x, y in CASES["linear"].batches(STEPS):
        trainer.step(x, y)
    expected = by_hand(forward, observe).state_dict()
    for name, value in net.state_dict().items():
        assert torch.allclose(value, expected[name], rtol=1e-10, atol=1e-13), f"'{name}' differs"
    if not forward:
        assert net.rules["1"].model.table.abs().max() > 0  # type: ignore[union-attr,operator]


def test_resuming_in_the_middle_with_messages_under_way() -> None:
    lags = {"1": Lag(1, 2), "3": Lag(2, 0)}
    batches = CASES["linear"].batches(STEPS)

    def start() -> InProcess:
        generator = torch.Generator().manual_seed(4)
        return InProcess(
            make(("1", "3")), F.cross_entropy, sgd, lags=lags, update_prob=0.7, generator=generator
        )

    whole = start()
    for x, y in batches:
        whole.step(x, y)
    first = start()
    for x, y in batches[:5]:
        first.step(x, y)
    saved = copy.deepcopy((first.net.state_dict(), first.state_dict()))
    second = start()
    second.net.load_state_dict(saved[0])
    second.load_state_dict(saved[1])
    for x, y in batches[5:]:
        second.step(x, y)
    for name, value in whole.net.state_dict().items():
        assert torch.equal(value, second.net.state_dict()[name]), f"'{name}' differs"


@pytest.mark.parametrize(
    ("case", "lags", "match"),
    [
        ("linear", {"nowhere": Lag(1)}, "expected one of"),
        ("linear", {"1": Lag(-1)}, "from 0"),
        ("two_headed", {"trunk": Lag(1)}, "not a chain"),
    ],
)
def test_lags_that_cannot_be(case: str, lags: dict[str, Lag], match: str) -> None:
    made = CASES[case]
    net = sg.decouple(made.model(), made.at, sg.NoBackprop(), made.batch()[0])
    with pytest.raises(ConfigError, match=match):
        InProcess(net, made.criterion, sgd, lags=lags)
