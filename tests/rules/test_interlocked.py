"""Interlocked losses: a module descends the local loss of the module above, a classifier its own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import synthgrad as sg
from synthgrad.core import ConfigError, Info, Site
from synthgrad.rules import InterlockedLoss, heads

CLASSES = 3
RATE = 0.1


def network() -> nn.Sequential:
    torch.manual_seed(0)
    blocks = [nn.Sequential(nn.Linear(a, 6), nn.Tanh()) for a in (4, 6, 6)]
    return nn.Sequential(*blocks, nn.Linear(6, CLASSES)).double()


def batch(seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(5, 4, dtype=torch.float64, generator=generator)
    return x, torch.randint(0, CLASSES, (5,), generator=generator)


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, RATE)


def by_hand(net: Any, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """Return what every parameter is after one step of gradient descent."""
    model, rules = net.model, [net.interfaces[name].rule for name in "012"]
    hs = [x]
    for k in range(3):
        hs.append(model[k](hs[-1]))
    losses = [F.cross_entropy(rule.head(h), y) for rule, h in zip(rules, hs[1:], strict=True)]
    losses.append(F.cross_entropy(model[3](hs[3]), y))  # the criterion
    after: dict[str, Tensor] = {}
    # Module k learns from the loss at the end of module k + 1; the last two from the criterion.
    for k, loss in enumerate([losses[1], losses[2], losses[3], losses[3]]):
        own = [(f"model.{k}.{n}", p) for n, p in model[k].named_parameters()]
        grads = torch.autograd.grad(loss, [p for _, p in own], retain_graph=True)
        after |= {n: p - RATE * g for (n, p), g in zip(own, grads, strict=True)}
    for k, rule in enumerate(rules):
        own = [(f"rules.{k}.{n}", p) for n, p in rule.named_parameters()]
        grads = torch.autograd.grad(losses[k], [p for _, p in own], retain_graph=True)
        after |= {n: p - RATE * g for (n, p), g in zip(own, grads, strict=True)}
    return after


def test_a_step_is_what_its_definition_says() -> None:
    x, y = batch()
    net = sg.decouple(network(), ["0", "1", "2"], InterlockedLoss(CLASSES), x)
    trainer = sg.engines.InProcess(net, F.cross_entropy, sgd)
    for k in range(3):
        x, y = batch(k)
        expected = by_hand(net, x, y)
        trainer.step(x, y)
        found = dict(net.named_parameters())
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=1e-10, atol=1e-12, msg=f"{name} in step {k}")


def test_one_hop_and_not_the_whole_network() -> None:
    """What lies two modules above does not reach a module: neither its weights nor its classifier."""
    ends = []
    for changed in (False, True):
        x, y = batch()
        net = sg.decouple(network(), ["0", "1", "2"], InterlockedLoss(CLASSES), x)
        if changed:
            with torch.no_grad():
                for p in (*net.model[2].parameters(), *net.model[3].parameters()):
                    p.mul_(2)
                for p in net.interfaces["2"].rule.parameters():
                    p.mul_(3)
        sg.engines.InProcess(net, F.cross_entropy, sgd).step(x, y)
        ends.append(net.state_dict())
    for name in ends[0]:
        lowest = name.startswith(("model.0", "rules.0", "rules.1"))
        assert torch.equal(ends[0][name], ends[1][name]) == lowest, name


def test_a_credit_waits_and_sends_what_the_local_loss_gives() -> None:
    site = Site("cut", (5, 4), torch.float64, torch.device("cpu"), nn.Identity())
    x, y = batch()
    made = []
    for kind in (sg.LocalLoss, InterlockedLoss):
        torch.manual_seed(1)
        made.append(kind(CLASSES, heads.linear_head((3,))).bind(site).credit(x, Info(context=y)))
    plain, ours = made
    assert ours.wait
    assert not plain.wait
    assert torch.equal(ours.delta, plain.delta)
    assert torch.equal(ours.sends, plain.delta)
    assert torch.equal(ours.loss, plain.loss)


def test_it_says_what_engines_must_know() -> None:
    rule = InterlockedLoss(CLASSES)
    assert (rule.listens, rule.waits, rule.sends_ahead) == (False, True, True)
    for around in (sg.HandOver, sg.rules.LateCorrection):
        with pytest.raises(
            ConfigError, match=f"{around.__name__} around InterlockedLoss: a rule that sends ahead"
        ):
            around(rule)
