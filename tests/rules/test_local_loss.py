"""The local loss: its credit is the gradient of its classifier's loss, and it learns from nothing else."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import synthgrad as sg
from synthgrad.core import ConfigError, ContextError, CutError, Info, Site
from synthgrad.rules import LocalLoss, heads
from tests.networks import CASES, CLASSES


def bound(shape: tuple[int, ...], head: Any = None) -> LocalLoss:
    torch.manual_seed(0)
    site = Site("cut", (4, *shape), torch.float64, torch.device("cpu"), nn.Identity())
    return LocalLoss(CLASSES, head).bind(site)


LABELS = torch.tensor([0, 1, 2, 4])


@pytest.mark.parametrize(
    ("shape", "head"),
    [
        ((6,), None),
        ((6,), heads.linear_head((5,))),
        ((3, 5, 5), None),
        ((3, 5, 5), heads.convolutional_head(7)),
        ((3, 5, 5), heads.convolutional_head(norm=False, pool=1)),
        ((2, 6), None),
    ],
)
def test_credit_and_gradients_are_those_of_the_classifier(shape: tuple[int, ...], head: Any) -> None:
    rule = bound(shape, head)
    h = torch.randn(4, *shape, dtype=torch.float64)
    credit = rule.credit(h, Info(context=LABELS))
    assert credit.delta is not None
    assert credit.loss is not None
    credit.loss.backward()
    ours = {name: p.grad for name, p in rule.named_parameters()}
    rule.zero_grad()
    leaf = h.clone().requires_grad_()
    loss = F.cross_entropy(rule.head(leaf), LABELS)
    loss.backward()
    assert torch.allclose(credit.loss, loss)
    assert leaf.grad is not None
    assert torch.allclose(credit.delta, leaf.grad * 4)  # in per-example units
    for name, p in rule.named_parameters():
        assert ours[name] is not None, name
        assert p.grad is not None, name
        assert torch.allclose(ours[name], p.grad), name  # type: ignore[arg-type]


def test_a_distribution_over_classes_serves_as_label() -> None:
    rule, h = bound((6,)), torch.randn(4, 6, dtype=torch.float64)
    hard = rule.credit(h, Info(context=LABELS)).delta
    soft = rule.credit(h, Info(context=F.one_hot(LABELS, CLASSES).double())).delta
    assert hard is not None
    assert soft is not None
    assert torch.allclose(hard, soft)


def test_no_gradient_reaches_the_activation() -> None:
    rule = bound((6,))
    h = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    credit = rule.credit(h, Info(context=LABELS))
    assert credit.loss is not None
    credit.loss.backward()
    assert h.grad is None


def test_both_engines_train_the_classifier_alike() -> None:
    case = CASES["linear"]
    nets = []
    for engine in (sg.engines.Locked, sg.engines.InProcess):
        net = sg.decouple(case.model(), case.at, LocalLoss(CLASSES), case.batch()[0])
        torch.manual_seed(1)
        for p in net.rules.parameters():
            nn.init.normal_(p)
        trainer = engine(net, case.criterion, lambda parameters: torch.optim.SGD(parameters, 0.1))
        for x, y in case.batches(5):
            trainer.step(x, y)
        nets.append(net.state_dict())
    for name, value in nets[0].items():
        assert torch.allclose(value, nets[1][name], atol=1e-12), name


def test_modules_descend_their_own_loss() -> None:
    case = CASES["linear"]
    x, y = case.batch(64)
    net = sg.decouple(case.model(), case.at, LocalLoss(CLASSES), x)
    trainer = sg.engines.InProcess(net, case.criterion, lambda parameters: torch.optim.Adam(parameters, 3e-2))
    losses: list[float] = []
    rule = net.interfaces["1"].rule
    for _ in range(60):
        with torch.no_grad():
            h = net.model[:2](x)  # type: ignore[index]
            losses.append(F.cross_entropy(rule.head(h), y).item())  # type: ignore[operator]
        trainer.step(x, y)
    assert losses[-1] < 0.6 * losses[0]


@pytest.mark.parametrize(
    ("context", "words"),
    [
        (None, "needs labels as context and got none"),
        (torch.zeros(3, dtype=torch.long), r"labels of shape \(3,\)"),
        (torch.zeros(4, 2), r"expected class indices \(4,\) or a distribution \(4, 5\)"),
    ],
)
def test_labels_that_do_not_fit_are_told(context: Any, words: str) -> None:
    with pytest.raises(ContextError, match=words):
        bound((6,)).check(torch.zeros(4, 6), Info(context=context))


def test_a_label_out_of_range_is_told() -> None:
    with pytest.raises(ContextError, match="interface 'cut': got class index 5, expected 0 to 4"):
        bound((6,)).credit(torch.zeros(4, 6, dtype=torch.float64), Info(context=LABELS + 1))


def test_arguments_out_of_range_are_told() -> None:
    with pytest.raises(ConfigError, match="classes=1"):
        LocalLoss(1)
    with pytest.raises(CutError, match="convolutional head needs messages"):
        bound((6,), heads.convolutional_head())
