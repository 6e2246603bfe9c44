"""What people do in their training loops, with a decoupled network in it."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import synthgrad as sg
from synthgrad.core import ConfigError, Credit, Info, Message, Monitor, Rule, Site
from tests.networks import CASES, CLASSES, Local


class Fixed(Rule):
    """Credit of all ones; remembers what it observed."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def build(self, site: Site) -> None:
        self.weight = nn.Parameter(torch.ones(site.shape[1:], dtype=site.dtype))

    def credit(self, h: Tensor, info: Info) -> Credit:
        return Credit(torch.ones_like(h), pending=(self.weight.expand_as(h),))

    def observe(self, h: Tensor, info: Info, message: Message, pending: tuple[Tensor, ...] = ()) -> Tensor:
        self.seen.append(message.gradient)
        prediction = pending[0] if pending else self.weight.expand_as(h)
        return (prediction - message.gradient).square().sum() / len(h)


def gradients(net: nn.Module) -> dict[str, Tensor]:
    return {n: p.grad.clone() for n, p in net.named_parameters() if p.grad is not None}


def net_with(rule: Rule, dtype: torch.dtype = torch.float64, **options: Any) -> sg.core.Decoupled:
    case = CASES["linear"]
    return sg.decouple(case.model(dtype), case.at, rule, case.batch(dtype=dtype)[0], **options)


def trained(steps: int = 30, *, learned_table: bool = False) -> sg.core.Decoupled:
    """A network whose synthetic gradients are no longer zero."""
    net = net_with(sg.SyntheticGradient(context=CLASSES, learned_table=learned_table))
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    for x, y in CASES["linear"].batches(steps):
        optimizer.zero_grad()
        F.cross_entropy(net(x, context=y), y).backward()
        optimizer.step()
    optimizer.zero_grad()
    return net


def test_the_cut_hands_down_the_credit_and_up_the_truth() -> None:
    x, y = CASES["linear"].batch()
    net = net_with(Fixed())
    F.cross_entropy(net(x), y).backward()
    plain = CASES["linear"].model()
    below = plain[2:4](plain[:2](x).detach())  # type: ignore[index]
    below.backward(torch.full_like(below, 1 / len(y)))  # ones, in the criterion's mean-reduced units
    assert torch.allclose(net.model[2].weight.grad, plain[2].weight.grad)  # type: ignore[index]
    h = plain[:4](x).detach().requires_grad_()  # type: ignore[index]
    F.cross_entropy(plain[4](h), y).backward()  # type: ignore[index]
    assert torch.allclose(net.rules["3"].seen[0], h.grad * len(y))  # per-example units
    rule = net.rules["3"]
    expected = 2 * (rule.weight.expand_as(h) - h.grad * len(y)).sum(0) / len(y)
    assert torch.allclose(rule.weight.grad, expected)


@pytest.mark.parametrize("size", [2, 8])
@pytest.mark.parametrize(("reduction", "scale"), [("mean", 1.0), ("sum", 1.0), ("mean", 1024.0)])
def test_units_do_not_depend_on_batch_reduction_or_scale(size: int, reduction: Any, scale: float) -> None:
    """The same example repeated: the message is the gradient of its own loss, whatever the loop does."""
    x, y = CASES["linear"].batch()
    x, y = x[:1].expand(size, -1), y[:1].expand(size)
    net = net_with(Fixed(), reduction=reduction, loss_scale=lambda: scale)
    (F.cross_entropy(net(x), y, reduction=reduction) * scale).backward()
    one = net_with(Fixed())
    F.cross_entropy(one(x[:1]), y[:1]).backward()
    for name in ("1", "3"):
        assert torch.allclose(net.rules[name].seen[0], one.rules[name].seen[0].expand(size, -1))
        # what a rule learns is a mean per example, times the scale that a scaler divides out again
        assert torch.allclose(net.rules[name].weight.grad / scale, one.rules[name].weight.grad)
    factor = scale * (size if reduction == "sum" else 1)
    assert torch.allclose(net.model[0].weight.grad / factor, one.model[0].weight.grad)  # type: ignore


def test_reduction_as_a_function_of_h() -> None:
    x, y = CASES["linear"].batch()
    given = net_with(Fixed(), reduction=lambda h: h.shape[0] * 3.0)
    (F.cross_entropy(given(x), y) / 3).backward()
    usual = net_with(Fixed())
    F.cross_entropy(usual(x), y).backward()
    assert torch.allclose(given.rules["3"].seen[0], usual.rules["3"].seen[0])


@pytest.mark.parametrize("wrong", [{"reduction": "average"}, {"loss_scale": 3.0}])
def test_units_that_cannot_be(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="expected"):
        net_with(Fixed(), **wrong)


def test_accumulation_equals_one_large_batch() -> None:
    x, y = CASES["linear"].batch(8)
    whole = trained(learned_table=True)  # means of classes would move between the halves
    parts = copy.deepcopy(whole)
    parts.units.loss_scale = lambda: 0.5
    F.cross_entropy(whole(x, context=y), y).backward()
    for half in (slice(0, 4), slice(4, 8)):
        (F.cross_entropy(parts(x[half], context=y[half]), y[half]) / 2).backward()
    expected = gradients(whole)
    for name, grad in gradients(parts).items():
        assert torch.allclose(grad, expected[name]), name


def test_gradient_scaler_changes_nothing() -> None:
    x, y = CASES["linear"].batch()
    usual = trained()
    scaled = copy.deepcopy(usual)
    scaler = torch.amp.GradScaler("cpu", init_scale=512.0)
    scaled.units.loss_scale = scaler.get_scale
    optimizer = torch.optim.SGD(scaled.parameters(), 0.1)
    scaler.scale(F.cross_entropy(scaled(x, context=y), y)).backward()
    scaler.unscale_(optimizer)
    F.cross_entropy(usual(x, context=y), y).backward()
    expected = gradients(usual)
    for name, grad in gradients(scaled).items():
        assert torch.allclose(grad, expected[name]), name
    scaler.step(optimizer)
    scaler.update()


def test_bfloat16_autocast() -> None:
    case = CASES["linear"]
    x, y = case.batch(dtype=torch.float32)
    net = net_with(sg.SyntheticGradient(hidden=(16,), context=CLASSES), torch.float32)
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    losses: list[float] = []
    for _ in range(30):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = F.cross_entropy(net(x, context=y), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in net.parameters())


def test_clipping_sees_every_gradient() -> None:
    x, y = CASES["linear"].batch()
    net = trained()
    F.cross_entropy(net(x, context=y), y).backward()
    norm = nn.utils.clip_grad_norm_(net.parameters(), 1e-3)
    assert norm > 1e-3
    total = torch.stack([p.grad.norm() for p in net.parameters() if p.grad is not None]).norm()
    assert torch.isclose(total, torch.tensor(1e-3, dtype=total.dtype), rtol=1e-3)


def test_frozen_parameters_below_and_in_the_rule() -> None:
    x, y = CASES["linear"].batch()
    net = trained()
    net.model[0].requires_grad_(False)  # type: ignore[index]
    net.rules["3"].requires_grad_(False)
    means = [net.rules[name].model.table.clone() for name in ("1", "3")]
    F.cross_entropy(net(x, context=y), y).backward()
    found = gradients(net)
    assert not any(n.startswith(("model.0.", "rules.3.")) for n in found)
    assert found["rules.1.model.weight"].abs().max() > 0  # learns although nothing below does
    assert found["model.2.weight"].abs().max() > 0
    moved = [not torch.equal(net.rules[n].model.table, m) for n, m in zip(("1", "3"), means, strict=True)]
    assert moved == [True, False]  # the means of a frozen rule are frozen too


def test_autograd_grad_works() -> None:
    x, y = CASES["linear"].batch()
    net = trained(learned_table=True)  # means of classes would move with each backward pass
    weight = net.model[0].weight  # type: ignore[index]
    (grad,) = torch.autograd.grad(F.cross_entropy(net(x, context=y), y), [weight])
    F.cross_entropy(net(x, context=y), y).backward()
    assert torch.equal(grad, weight.grad)


def test_error_flows_into_h_if_asked() -> None:
    x, y = CASES["linear"].batch()
    usual, flowing = (
        net_with(sg.SyntheticGradient(context=CLASSES, error_to_h=flag)) for flag in (False, True)
    )
    for net in (usual, flowing):
        with torch.no_grad():
            for rule in net.rules.values():
                torch.manual_seed(3)
                rule.model.weight.normal_()
    for net in (usual, flowing):
        F.cross_entropy(net(x, context=y), y).backward()
    assert torch.allclose(flowing.rules["3"].model.weight.grad, usual.rules["3"].model.weight.grad)
    assert not torch.allclose(flowing.model[0].weight.grad, usual.model[0].weight.grad)  # type: ignore[index]


# Dynamo makes an instance of the autograd function to trace it, which torch itself deprecates.
TRACING = pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")


@TRACING
def test_compile_fullgraph_gives_the_same_gradients() -> None:
    net = trained()
    eager = copy.deepcopy(net)
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    for size in (8, 8, 5):
        x, y = CASES["linear"].batch(size)
        for run in (compiled, eager):
            F.cross_entropy(run(x, context=y), y).backward()
    with sg.context(CASES["linear"].batch()[1]):
        compiled(CASES["linear"].batch()[0])
    expected = gradients(eager)
    for name, grad in gradients(net).items():
        assert torch.allclose(grad, expected[name]), name


@TRACING
@pytest.mark.parametrize("case", ["batchnorm", "conv", "residual", "two_headed"])
def test_compile_fullgraph_of_other_networks(case: str) -> None:
    torch._dynamo.reset()
    made = CASES[case]
    x, y = made.batch()
    net = sg.decouple(made.model(), made.at, sg.SyntheticGradient((8,), CLASSES), x)
    made.criterion(torch.compile(net, fullgraph=True, backend="aot_eager")(x, context=y), y).backward()
    assert len(gradients(net)) == len(list(net.parameters()))


def test_monitor_in_the_plain_loop() -> None:
    net = trained()
    net.monitor = Monitor(every=2)
    for x, y in CASES["linear"].batches(4):
        F.cross_entropy(net(x, context=y), y).backward()
    found = net.monitor.collect()
    assert set(found) == {"1", "3"}
    assert -1 <= found["1"].cosine <= 1
    assert net.monitor.collect() == {}


def test_local_loss_of_a_rule_learns_in_the_plain_loop() -> None:
    x, y = CASES["linear"].batch()
    for scale in (1.0, 64.0):
        net = net_with(Local(), loss_scale=lambda scale=scale: scale)
        (F.cross_entropy(net(x, context=y), y) * scale).backward()
        rule = net.rules["1"]
        h = net.model[:2](x).detach()  # type: ignore[index]
        head = copy.deepcopy(rule.head)
        head.zero_grad()
        F.cross_entropy(head(h), y).backward()
        assert torch.allclose(rule.head.weight.grad / scale, head.weight.grad)
