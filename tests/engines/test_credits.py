"""The quality of credits, held against the gradient of backpropagation."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import synthgrad as sg
from synthgrad.core import ConfigError, Credit, Info, Rule
from synthgrad.engines import InProcess, credit_quality
from synthgrad.lab.tasks.gpt import gpt
from tests.networks import CASES, CLASSES, Case

cases = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


class Twice(Rule):
    """Gives twice what it is told for each interface."""

    truth: dict[str, Tensor]

    def credit(self, h: Tensor, info: Info) -> Credit:
        return Credit(2 * self.truth[self.name])


def by_hand(model: nn.Module, at: Any, total: Any, x: Tensor) -> dict[str, Tensor]:
    """Return the gradient of a sum over examples at the outputs of some submodules, in evaluation mode."""
    model, seen = copy.deepcopy(model).eval(), dict[str, Tensor]()

    def keep(name: str, h: Tensor) -> Tensor:
        seen[name] = h
        return h.clone()  # the module above may change its input in place

    for name in at:
        model.get_submodule(name).register_forward_hook(lambda _, __, h, name=name: keep(name, h))
    loss = total(model(x))
    return dict(zip(at, torch.autograd.grad(loss, [seen[name] for name in at]), strict=True))


@cases
def test_the_true_gradient_in_per_example_units_is_what_credits_are_held_against(case: Case) -> None:
    model, (x, y) = case.model(), case.batch()
    net = sg.decouple(model, case.at, Twice(), x)
    Twice.truth = by_hand(model, case.at, lambda output: len(x) * case.criterion(output, y), x)
    found = credit_quality(net, case.criterion, x, y)
    assert set(found) == set(case.at)
    for name, quality in found.items():
        assert quality.cosine == pytest.approx(1, abs=1e-6), name
        assert quality.relative_error == pytest.approx(1, abs=1e-6), name  # ‖2δ - δ‖ / ‖δ‖
        assert quality.sign_agreement == 1


def test_what_a_monitor_holds_against_a_message_of_credit_is_held_against_the_truth() -> None:
    """Above the lower cut the message is made of the upper credit, so that the two measures differ there alone."""
    case = CASES["linear"]
    (x, y), monitor = case.batch(), sg.Monitor(every=1)
    net = sg.decouple(case.model(), case.at, sg.LocalLoss(CLASSES), x)
    frozen = InProcess(net, case.criterion, lambda p: torch.optim.SGD(p, 1e-12), monitor=monitor)
    true = credit_quality(net, case.criterion, x, y)
    frozen.step(x, y)
    seen = monitor.collect()
    *lower, top = case.at
    assert true[top].cosine == pytest.approx(seen[top].cosine, abs=1e-5)
    assert all(abs(true[name].cosine - seen[name].cosine) > 1e-3 for name in lower)


def test_nothing_changes() -> None:
    """Neither weights, statistics, gradients nor modes; and dropout does not disturb."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.ReLU(), nn.Linear(6, CLASSES)
    )
    x, y = torch.randn(8, 4), torch.randint(CLASSES, (8,))
    net = sg.decouple(model, ["1"], sg.SyntheticGradient((5,), CLASSES), x)
    net.model[2].eval()
    before = copy.deepcopy(net.state_dict())
    modes = {name: module.training for name, module in net.named_modules()}
    state = torch.get_rng_state()
    first, again = (credit_quality(net, nn.CrossEntropyLoss(), x, y) for _ in range(2))
    assert first == again
    assert first["1"].cosine == 0  # the first synthetic gradients are zero
    assert first["1"].relative_error == 1
    assert torch.equal(torch.get_rng_state(), state)
    assert {name: module.training for name, module in net.named_modules()} == modes
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(p.grad is None for p in net.parameters())


def test_rules_that_give_no_credit_have_none_and_frozen_modules_do_not_matter() -> None:
    case = CASES["linear"]
    x, y = case.batch()
    net = sg.decouple(
        case.model(), case.at, {case.at[0]: sg.LocalLoss(CLASSES), case.at[1]: sg.rules.TrueGradient()}, x
    )
    free = credit_quality(net, case.criterion, x, y)
    assert set(free) == {case.at[0]}
    lowest = next(iter(net.model.children()))
    lowest.requires_grad_(False)
    assert credit_quality(net, case.criterion, x, y) == free


def test_tokens_without_a_label_count_for_nothing() -> None:
    torch.manual_seed(0)
    model, x = gpt(7, width=8, blocks=2, heads=2, context=6), torch.randint(7, (4, 6))
    y = torch.randint(7, (4, 6))
    y[1], y[2, 3:] = -100, -100

    def criterion(scores: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(scores.flatten(0, 1), target.flatten())

    def total(scores: Tensor) -> Tensor:
        each = F.cross_entropy(scores.flatten(0, 1), y.flatten(), reduction="none").view(y.shape)
        return (each.sum(1) / (y != -100).sum(1).clamp_min(1)).sum()

    Twice.truth = by_hand(model, ["block1"], total, x)
    Twice.truth["block1"][1] = 5.0  # of a sequence without any label, which nobody learns from
    net = sg.decouple(model, ["block1"], Twice(), x, reduction="tokens")
    found = credit_quality(net, criterion, x, y)["block1"]
    assert found.cosine == pytest.approx(1, abs=1e-5)
    assert found.relative_error == pytest.approx(1, abs=1e-5)


def test_what_is_no_decoupled_network_is_told() -> None:
    with pytest.raises(ConfigError, match=r"got a Linear, expected what synthgrad\.decouple returned"):
        credit_quality(nn.Linear(2, 2), nn.CrossEntropyLoss(), torch.ones(1, 2))  # pyright: ignore[reportArgumentType]
