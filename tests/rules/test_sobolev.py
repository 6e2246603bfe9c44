"""The critic: its credit is the gradient of its value, and it learns on both."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import synthgrad as sg
from synthgrad.core import ConfigError, ContextError, Info, Message, Site
from synthgrad.rules import Sobolev
from tests.networks import CASES, CLASSES

LABELS = torch.tensor([0, 1, 2, 4])
FORMS: dict[str, dict[str, Any]] = {
    "classifier": {"classes": CLASSES},
    "classifier, hidden": {"classes": CLASSES, "hidden": (7,)},
    "value, labels": {"classes": CLASSES, "hidden": (7,), "critic": "value"},
    "value, no labels": {"classes": None, "hidden": (7,), "critic": "value", "norm": False},
}
every_form = pytest.mark.parametrize("form", FORMS)


def bound(form: str, shape: tuple[int, ...] = (6,)) -> Sobolev:
    torch.manual_seed(0)
    site = Site("cut", (4, *shape), torch.float64, torch.device("cpu"), nn.Identity())
    rule = Sobolev(**FORMS[form]).bind(site)
    for p in rule.parameters():
        nn.init.normal_(p)  # the last layer starts at zero, where there is little to see
    return rule


def batch(*shape: int) -> Tensor:
    return torch.randn(4, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@every_form
def test_credit_is_the_gradient_of_the_value(form: str) -> None:
    rule, info = bound(form), Info(context=LABELS)
    leaf = batch(6).requires_grad_()
    values = rule.values(leaf, info)
    assert values.shape == (4,)
    values.sum().backward()
    credit = rule.credit(leaf.detach(), info)
    assert credit.delta is not None
    assert credit.value is not None
    assert leaf.grad is not None
    assert torch.allclose(credit.delta, leaf.grad)
    assert torch.allclose(credit.value, values)
    assert not credit.delta.requires_grad


@every_form
@pytest.mark.parametrize("with_value", [True, False])
def test_pending_prediction_gives_the_gradients_of_the_loss(form: str, with_value: bool) -> None:
    rule, info, h = bound(form), Info(context=LABELS), batch(6)
    message = Message(batch(6) * 0.3, torch.rand(4, dtype=torch.float64) if with_value else None)
    rule.observe(h, info, message).backward()
    whole = {name: p.grad.clone() for name, p in rule.named_parameters() if p.grad is not None}
    rule.zero_grad()
    pending = rule.credit(h, info).pending
    torch.autograd.backward(pending, rule.observe_grad(h, info, message, pending))
    assert whole
    for name, p in rule.named_parameters():
        expected = whole.get(name, torch.zeros_like(p))
        assert torch.allclose(torch.zeros_like(p) if p.grad is None else p.grad, expected), name


def test_loss_is_that_of_gradient_and_value() -> None:
    rule, info, h = bound("classifier"), Info(context=LABELS), batch(6)
    delta, values = rule.predict(h, info)
    message = Message(batch(6), torch.ones(4, dtype=torch.float64))
    expected = (delta - message.gradient).square().sum() / 4 + (values - 1).square().mean()
    assert torch.allclose(rule.observe(h, info, message), expected)


def test_a_critic_of_the_true_form_learns_the_true_gradient() -> None:
    """Above the cut there is a linear layer: a linear classifier can be that layer exactly."""
    torch.manual_seed(3)
    top, h = nn.Linear(6, CLASSES).double(), torch.randn(64, 6, dtype=torch.float64)
    y = torch.randint(0, CLASSES, (64,))
    site = Site("cut", (64, 6), torch.float64, torch.device("cpu"), nn.Identity())
    rule = Sobolev(CLASSES).bind(site)
    leaf = h.clone().requires_grad_()
    losses = F.cross_entropy(top(leaf), y, reduction="none")
    losses.sum().backward()
    assert leaf.grad is not None
    message, info = Message(leaf.grad, losses.detach()), Info(context=y)
    optimizer = torch.optim.Adam(rule.parameters(), 0.02)
    for _ in range(600):
        optimizer.zero_grad()
        rule.observe(h, info, message).backward()
        optimizer.step()
    delta = rule.credit(h, info).delta
    assert delta is not None
    assert sg.core.quality(delta, leaf.grad).cosine > 0.99


def test_engine_sends_loss_values_down_where_the_criterion_gives_them() -> None:
    case = CASES["linear"]
    x, y = case.batch()
    net = sg.decouple(case.model(), case.at, Sobolev(CLASSES), x)
    seen: dict[str, Message] = {}
    for name, interface in net.interfaces.items():

        def spy(
            h: Tensor,
            info: Info,
            message: Message,
            pending: Any,
            name: str = name,
            rule: Any = interface.rule,
        ) -> Any:
            seen[name] = message
            return Sobolev.observe_grad(rule, h, info, message, pending)

        interface.rule.observe_grad = spy  # type: ignore[method-assign]
    values = net.interfaces["3"].rule.values(net.model[:4](x), Info(context=y))  # type: ignore[union-attr, index, operator]
    expected = F.cross_entropy(net.model(x), y, reduction="none")

    def criterion(output: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(output, target, reduction="none")

    record = sg.engines.InProcess(net, criterion, lambda p: torch.optim.SGD(p, 0.1)).step(x, y)
    assert torch.allclose(seen["3"].loss, expected)  # type: ignore[arg-type]
    assert torch.allclose(seen["1"].loss, values)  # type: ignore[arg-type]
    assert record.loss is not None
    assert torch.allclose(record.loss, expected.mean())


def test_a_criterion_with_a_loss_for_each_example_trains_as_its_mean_does() -> None:
    case = CASES["linear"]
    ends: list[dict[str, Tensor]] = []
    for reduction in ("mean", "none"):
        for engine in (sg.engines.Locked, sg.engines.InProcess):
            net = sg.decouple(case.model(), case.at, sg.SyntheticGradient(context=CLASSES), case.batch()[0])

            def criterion(output: Tensor, target: Tensor, reduction: str = reduction) -> Tensor:
                return F.cross_entropy(output, target, reduction=reduction)

            trainer = engine(net, criterion, lambda p: torch.optim.SGD(p, 0.1))
            for x, y in case.batches(4):
                trainer.step(x, y)
            ends.append(net.state_dict())
    for name, value in ends[0].items():
        for other in ends[1:]:
            assert torch.allclose(value, other[name], atol=1e-12), name


def test_images_have_critics_too() -> None:
    rule = bound("classifier, hidden", (3, 5, 5))
    credit = rule.credit(batch(3, 5, 5), Info(context=LABELS))
    assert credit.delta is not None
    assert credit.delta.shape == (4, 3, 5, 5)


@pytest.mark.parametrize(
    "arguments",
    [
        {"classes": 1},
        {"classes": None},
        {"classes": 3, "critic": "other"},
        {"classes": 3, "value_weight": -1},
    ],
)
def test_arguments_out_of_range_are_told(arguments: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        Sobolev(**arguments)


@pytest.mark.parametrize("form", ["classifier", "value, labels"])
def test_missing_labels_are_told(form: str) -> None:
    with pytest.raises(ContextError, match="got none"):
        bound(form).check(batch(6), Info())
