"""Targets: distributions are told from what is none, and losses of the user's own take the rest."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import synthgrad as sg
from synthgrad.core import ConfigError, ContextError, Info, Message, Site

CLASSES = 3
RULES: dict[str, Callable[..., Any]] = {"local loss": sg.LocalLoss, "critic": sg.Sobolev}
every_rule = pytest.mark.parametrize("kind", RULES)


def bound(rule: Any, features: int = 6, dtype: torch.dtype = torch.float64) -> Any:
    made = rule.bind(Site("cut", (4, features), dtype, torch.device("cpu"), nn.Identity()))
    generator = torch.Generator().manual_seed(0)
    for p in made.parameters():
        nn.init.normal_(p, generator=generator)
    return made


def drawn(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


SOFT = drawn(4, CLASSES).softmax(1)


@every_rule
@pytest.mark.parametrize(
    "target",
    [
        torch.tensor([[1.0, 1, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]]),  # several labels at once
        torch.tensor([[1.0, 0, 0], [0, 0, 0], [0, 1, 0], [0, 0, 1]]),  # none
        torch.tensor([[0.5, 0.5, 0], [2.0, -1.0, 0], [0, 1, 0], [0, 0, 1]]),  # sums to 1
        SOFT * 1.01,
        torch.full((4, CLASSES), float("nan")),
        torch.full((4, CLASSES), 0.3, dtype=torch.bfloat16),
    ],
    ids=["multi-hot", "empty", "negative", "a little more", "nan", "bfloat16"],
)
def test_targets_that_are_no_distribution_are_refused(kind: str, target: Tensor) -> None:
    with pytest.raises(
        ContextError, match=r"interface 'cut': .* rows are no distribution .* loss=F\.mse_loss"
    ):
        bound(RULES[kind](CLASSES)).check(drawn(4, 6), Info(context=target))


@every_rule
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_distributions_of_every_precision_are_taken(kind: str, dtype: torch.dtype) -> None:
    rule = bound(RULES[kind](500), dtype=dtype if dtype == torch.float64 else torch.float32)
    target = drawn(64, 500).softmax(1).to(dtype)
    h = drawn(64, 6).to(rule.head.layers[-1].weight.dtype)
    rule.check(h, Info(context=target))
    if dtype.itemsize >= 4:
        assert rule.credit(h, Info(context=target)).delta.isfinite().all()
    rule.check(h[:0], Info(context=target[:0]))


@pytest.mark.parametrize(
    ("row", "narrow"),
    [
        ([0.3359375] * 3, torch.bfloat16),  # sums to 1.0078: a third, rounded up by a bit
        ([0.334961] * 3, torch.float16),  # to 1.0049
    ],
)
def test_rounding_in_half_precision_is_forgiven(row: list[float], narrow: torch.dtype) -> None:
    rule, h = bound(sg.LocalLoss(3), dtype=torch.float32), drawn(4, 6).float()
    rule.check(h, Info(context=torch.tensor([row] * 4, dtype=narrow)))
    with pytest.raises(ContextError, match="no distribution"):
        rule.check(h, Info(context=torch.tensor([row] * 4)))
    with pytest.raises(ContextError, match="no distribution"):
        rule.check(h, Info(context=torch.tensor([row] * 4, dtype=narrow) * 1.05))


@every_rule
def test_the_loss_of_ones_own_is_taken_in_place_of_cross_entropy(kind: str) -> None:
    """The credit is the gradient of it at h, per example, and no target is refused."""
    targets = {
        "mse": (F.mse_loss, drawn(4, 2) * 5 - 3),
        "bce": (F.binary_cross_entropy_with_logits, (drawn(4, 2) > 0).double()),
    }
    for loss, target in targets.values():
        h, info = drawn(4, 6), Info(context=target)
        rule = bound(RULES[kind](2, loss=loss))
        rule.check(h, info)
        leaf = h.clone().requires_grad_()
        whole = loss(rule.head(leaf), target)
        (expected,) = torch.autograd.grad(whole * 4, leaf)
        credit = rule.credit(h, info)
        torch.testing.assert_close(credit.delta, expected)
        if kind == "local loss":
            torch.testing.assert_close(credit.loss, whole)
            ours = torch.autograd.grad(credit.loss, list(rule.parameters()))
            theirs = torch.autograd.grad(loss(rule.head(h), target), list(rule.parameters()))
            for a, b in zip(ours, theirs, strict=True):
                torch.testing.assert_close(a, b)
        else:
            torch.testing.assert_close(credit.value, whole.detach().expand(4))


@every_rule
def test_a_loss_for_each_example_is_the_same_as_their_mean(kind: str) -> None:
    target, h = drawn(4, 2), drawn(4, 6)

    def each(outputs: Tensor, target: Tensor) -> Tensor:
        return F.mse_loss(outputs, target, reduction="none").mean(1)

    one, other = bound(RULES[kind](2, loss=F.mse_loss)), bound(RULES[kind](2, loss=each))
    credits = [rule.credit(h, Info(context=target)) for rule in (one, other)]
    torch.testing.assert_close(credits[0].delta, credits[1].delta)
    if kind == "local loss":
        torch.testing.assert_close(credits[0].loss, credits[1].loss)
    else:
        values = F.mse_loss(other.head(h), target, reduction="none").mean(1)
        torch.testing.assert_close(credits[1].value, values)
        message = Message(drawn(4, 6), torch.rand(4, dtype=torch.float64))
        expected = (credits[1].delta - message.gradient).square().sum() + (
            values - message.loss
        ).square().sum()
        torch.testing.assert_close(other.observe(h, Info(context=target), message), expected / 4)


def test_a_module_as_loss_moves_and_learns_with_the_rule() -> None:
    loss = nn.BCEWithLogitsLoss(pos_weight=torch.ones(2))
    rule = bound(sg.LocalLoss(2, loss=loss))
    assert rule.loss.pos_weight.dtype == torch.float64
    assert loss.pos_weight.dtype == torch.float32  # the pattern stays as it was

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, outputs: Tensor, target: Tensor) -> Tensor:
            return F.mse_loss(self.scale * outputs, target)

    rule = bound(sg.LocalLoss(2, loss=Scaled()))
    credit = rule.credit(drawn(4, 6), Info(context=drawn(4, 2)))
    credit.loss.backward()
    assert rule.loss.scale.grad.abs() > 0


@every_rule
@pytest.mark.parametrize("size", [0, 1])
def test_small_batches_have_a_loss_too(kind: str, size: int) -> None:
    rule = bound(RULES[kind](2, loss=F.mse_loss))
    h, target = drawn(4, 6)[:size], drawn(4, 2)[:size]
    rule.check(h, Info(context=target))
    credit = rule.credit(h, Info(context=target))
    assert credit.delta.shape == (size, 6)
    if kind == "local loss":
        credit.loss.backward()
        assert credit.loss.isfinite()
        assert all(p.grad.isfinite().all() for p in rule.parameters())


@every_rule
def test_losses_of_another_shape_are_refused(kind: str) -> None:
    rule = bound(RULES[kind](2, loss=nn.BCEWithLogitsLoss(reduction="none")))
    with pytest.raises(
        ConfigError, match=r"interface 'cut': loss= returned a tensor of shape \(4, 2\) .*mean\(1\)"
    ):
        rule.credit(drawn(4, 6), Info(context=drawn(4, 2)))
    rule = bound(RULES[kind](2, loss=lambda outputs, target: F.mse_loss(outputs, target).unsqueeze(0)))
    with pytest.raises(ConfigError, match=r"shape \(1,\) for 4 examples"):
        rule.credit(drawn(4, 6), Info(context=drawn(4, 2)))


@every_rule
def test_a_target_with_other_rows_is_refused(kind: str) -> None:
    rule = bound(RULES[kind](2, loss=F.mse_loss))
    for target in (drawn(3, 2), torch.tensor(1.0)):
        with pytest.raises(ContextError, match="interface 'cut': got a target of shape .* expected 4 rows"):
            rule.check(drawn(4, 6), Info(context=target))
    with pytest.raises(ContextError, match="got none"):
        rule.check(drawn(4, 6), Info())


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: sg.LocalLoss(1), "number of classes, at least 2"),
        (lambda: sg.LocalLoss(0, loss=F.mse_loss), "number of outputs"),
        (lambda: sg.LocalLoss(2, loss="mse"), "expected a callable"),  # type: ignore[arg-type]
        (lambda: sg.LocalLoss(2, loss=nn.MSELoss(reduction="sum")), "reduction='mean'"),
        (lambda: sg.Sobolev(2, loss=nn.MSELoss(reduction="sum")), "reduction='mean'"),
        (lambda: sg.Sobolev(2, critic="value", loss=F.mse_loss), "loss= is for critic='classifier'"),
    ],
)
def test_settings_that_cannot_be(make: Callable[[], Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        make()


def test_regression_descends_its_own_loss() -> None:
    """Two modules, each below a cut or on top, learn a linear map by mean squares; cross entropy could not."""
    torch.manual_seed(0)
    x = torch.randn(64, 6)
    y = x @ torch.randn(6, 2) * 3
    model = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 2))
    net = sg.decouple(model, ["1"], sg.LocalLoss(2, loss=F.mse_loss), x)
    trainer = sg.engines.InProcess(net, F.mse_loss, lambda p: torch.optim.Adam(p, 1e-2))
    losses = [float(trainer.step(x, y).loss) for _ in range(300)]  # type: ignore[arg-type]
    rule: Any = net.interfaces["1"].rule
    assert losses[-1] < 0.05 * losses[0]
    assert F.mse_loss(rule.head(net.model[:2](x)), y) < 0.05 * losses[0]  # type: ignore[index]
