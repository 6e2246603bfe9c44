"""The late correction: what it hands on, what it adds, and what it refuses."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import synthgrad as sg
from synthgrad.core import ConfigError, ContextError, Info, Message, Rule, Site
from synthgrad.engines import InProcess, Lag
from synthgrad.rules import HeadGradient, LateCorrection, LeastSquaresGradient, heads
from tests.networks import CASES, CLASSES

B, H = 4, 6
INNER: dict[str, Callable[[], Rule]] = {
    "local loss": lambda: sg.LocalLoss(CLASSES),
    "synthetic gradient": lambda: sg.SyntheticGradient((5,), CLASSES, norm=False),
    "critic": lambda: sg.Sobolev(CLASSES),
    "least squares": lambda: LeastSquaresGradient(CLASSES),
    "head gradient": lambda: HeadGradient(CLASSES, every=1),
    "stale": lambda: sg.rules.StaleGradient(10),
}
every_rule = pytest.mark.parametrize("name", INNER)


def bound(rule: Rule) -> Any:
    torch.manual_seed(0)
    return rule.bind(Site("cut", (B, H), torch.float64, torch.device("cpu"), nn.Identity()))


def drawn(seed: int = 0) -> Tensor:
    return torch.randn(B, H, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


INFO = Info(context=torch.tensor([0, 1, 2, 4]), ids=torch.arange(B), step=0)


@every_rule
def test_the_rule_inside_gives_the_credit_and_learns_as_it_would_alone(name: str) -> None:
    alone, wrapped = bound(INNER[name]()), bound(LateCorrection(INNER[name]()))
    h, message = drawn(), Message(drawn(1), torch.rand(B, dtype=torch.float64))
    for _ in range(2):  # before it has learned and after
        ours, theirs = wrapped.credit(h, INFO), alone.credit(h, INFO)
        assert torch.equal(ours.delta, theirs.delta)
        assert (ours.loss is None) == (theirs.loss is None)
        assert len(ours.pending) == (len(theirs.pending) if alone.listens else 0)
        losses = [wrapped.observe(h, INFO, message, ours.pending)]
        losses.append(alone.observe(h, INFO, message, theirs.pending) if alone.listens else None)
        assert (losses[0] is None) == (losses[1] is None)
        if losses[0] is not None:
            assert torch.equal(losses[0], losses[1])
            grads = [
                rule.observe_grad(h, INFO, message, credit.pending)
                for rule, credit in ((wrapped, ours), (alone, theirs))
            ]
            for a, b in zip(*grads, strict=True):
                assert torch.equal(a, b)
    assert {k.removeprefix("rule."): v.shape for k, v in wrapped.state_dict().items()} == {
        k: v.shape for k, v in alone.state_dict().items()
    }
    with pytest.raises(ContextError, match=r"got none|no ids"):
        wrapped.check(h, Info())


@every_rule
def test_engines_are_told_what_the_rule_inside_needs(name: str) -> None:
    inner = INNER[name]()
    rule = bound(LateCorrection(inner))
    assert rule.corrects
    assert rule.listens  # the message is always wanted
    assert not rule.waits
    assert (
        rule.learns_from_messages == inner.learns_from_messages
    )  # so its parameters are updated with the same module


def test_tokens_are_found_inside() -> None:
    site = Site("cut", (B, 3, H), torch.float64, torch.device("cpu"), nn.Identity())
    rule = LateCorrection(sg.LocalLoss(CLASSES, heads.token_head(0))).bind(site)
    assert any(getattr(part, "mean_of_tokens", False) for part in rule.modules())


@pytest.mark.parametrize(("weight", "share", "factor"), [(0.5, 1.0, 0.5), (1, 0.25, 4.0), (0, 1, 0.0)])
def test_the_correction_is_the_difference_with_weight_over_share(
    weight: float, share: float, factor: float
) -> None:
    rule = bound(LateCorrection(sg.LocalLoss(CLASSES), weight, share))
    delta, message = drawn(), Message(drawn(1))
    difference, found = rule.correction(delta, message, INFO)
    assert torch.equal(difference, message.gradient - delta)
    assert found == factor


def test_the_weight_may_follow_the_age() -> None:
    rule = bound(LateCorrection(sg.LocalLoss(CLASSES), lambda age: 1 / (1 + age), 0.5))
    for age, factor in ((0, 2.0), (3, 0.5)):
        assert rule.correction(drawn(), Message(drawn(1), age=age), INFO)[1] == factor
    with pytest.raises(
        ConfigError, match="interface 'cut': weight is a function of the message's age.*does not tell"
    ):
        rule.correction(drawn(), Message(drawn(1)), INFO)
    for wrong in (math.nan, math.inf, -1.0, "much", None):
        rule = bound(LateCorrection(sg.LocalLoss(CLASSES), lambda age, wrong=wrong: wrong))
        with pytest.raises(
            ConfigError, match="interface 'cut': weight=.*a finite number, 0 or more, at age 2"
        ):
            rule.correction(drawn(), Message(drawn(1), age=2), INFO)
    tensor = bound(LateCorrection(sg.LocalLoss(CLASSES), lambda age: torch.tensor(0.25)))
    assert tensor.correction(drawn(), Message(drawn(1), age=2), INFO)[1] == 0.25


@pytest.mark.parametrize("share", [1.0, 0.25])
@pytest.mark.parametrize(
    ("credit", "message", "weight"),
    [
        ((3.0, 4.0), (3.0, 4.0), 1.0),  # exact
        ((3.0, 4.0), (3.0, 4.1), 1.0),  # nearly: the part along the message is larger than the error
        ((1.0, 1.0), (1.0, 0.0), 1.0),  # the part along the message is as large as the error
        ((1.0, 2.0), (1.0, 0.0), 0.5),  # 1 along the message, 2 beside it
        ((1.0, 0.0), (4.0, 0.0), 1 / 3),  # right, and much too small
        ((0.0, 2.0), (1.0, 0.0), 0.0),  # across
        ((-1.0, 2.0), (1.0, 0.0), 0.0),  # against
        ((1.0, 2.0), (0.0, 0.0), 0.0),  # nothing came
    ],
)
def test_without_a_weight_it_is_found_by_how_well_the_credit_agreed(
    credit: tuple[float, float], message: tuple[float, float], weight: float, share: float
) -> None:
    rule = bound(LateCorrection(sg.LocalLoss(CLASSES), share=share))
    asked = (torch.tensor(credit, dtype=torch.float64), torch.tensor(message, dtype=torch.float64))
    for dtype, size in ((torch.float64, 1.0), (torch.bfloat16, 1.0), (torch.float16, 1e-3)):
        delta, gradient = ((t * size).to(dtype) for t in asked)
        found = rule.correction(delta, Message(gradient), INFO)[1]
        assert rule.last_weight == found * share
        assert found == pytest.approx(weight, abs=1e-12 if dtype == torch.float64 else 0.03)
        older = rule.correction(delta, Message(gradient, age=15), INFO)[1]
        assert older == pytest.approx(found / 2, rel=1e-6)
    assert str(rule).count("weight=by agreement") == 1


def train(rule: Rule, seed: int = 0, steps: int = 6, **options: Any) -> dict[str, Tensor]:
    case = CASES["linear"]
    torch.manual_seed(seed)
    net = sg.decouple(case.model(), case.at, rule, case.batch()[0])
    lags = {name: Lag(observe=2) for name in net.interfaces}
    trainer = InProcess(net, case.criterion, lambda p: torch.optim.SGD(p, 0.1), lags=lags, **options)
    for x, y in case.batches(steps):
        trainer.step(x, y, ids=torch.arange(len(x)))
    return net.state_dict()


def test_a_weight_of_zero_is_the_rule_alone_below_the_last_cut() -> None:
    """The module below the last cut learns from its credit; those below that are sent what has been corrected."""
    case = CASES["linear"]
    found, alone = train(LateCorrection(sg.LocalLoss(CLASSES), 0.0)), train(sg.LocalLoss(CLASSES))
    for name, value in alone.items():
        if name.startswith("model."):
            torch.testing.assert_close(found[name], value, rtol=1e-12, atol=1e-14, msg=name)
    corrected = train(LateCorrection(sg.LocalLoss(CLASSES), 0.5))
    lowest = f"model.{int(case.at[0]) - 1}.weight"
    assert not torch.allclose(corrected[lowest], alone[lowest])


def test_a_callable_weight_of_the_age_is_asked_by_the_engine() -> None:
    ages: set[int] = set()

    def weight(age: int) -> float:
        ages.add(age)
        return 0.5

    found, constant = (
        train(LateCorrection(sg.LocalLoss(CLASSES), weight)),
        train(LateCorrection(sg.LocalLoss(CLASSES), 0.5)),
    )
    for name, value in constant.items():
        assert torch.equal(found[name], value), name
    assert ages  # updates since the batch crossed
    assert max(ages) >= 2


def test_with_weight_one_and_no_movement_the_two_parts_are_the_true_gradient() -> None:
    """With a rate of next to zero, credit and correction of a batch sum to the gradient of backpropagation."""
    case = CASES["linear"]
    model = case.model()
    x, y = case.batch()
    rate = 1e-7
    net = sg.decouple(copy.deepcopy(model), [case.at[-1]], LateCorrection(sg.LocalLoss(CLASSES), 1.0), x)
    trainer = InProcess(
        net, case.criterion, lambda p: torch.optim.SGD(p, rate), lags={case.at[-1]: Lag(observe=1)}
    )
    weights = []
    for _ in range(4):
        weights.append({n: p.detach().clone() for n, p in net.model.named_parameters()})
        trainer.step(x, y)
    credit = _moved(weights[0], weights[1], rate)
    both = _moved(weights[2], weights[3], rate)  # of one batch its credit, of an earlier one its correction
    case.criterion(model(x), y).backward()
    for name, p in model.named_parameters():
        if int(name.split(".")[0]) < int(case.at[-1]):
            assert p.grad is not None
            torch.testing.assert_close(both[name], p.grad, rtol=1e-4, atol=1e-7, msg=name)
            assert (both[name] - credit[name]).abs().max() > 1e-3, name


def _moved(before: dict[str, Tensor], after: dict[str, Tensor], rate: float) -> dict[str, Tensor]:
    """Return the gradients that gradient descent has followed from one to the other."""
    return {name: (value - after[name]) / rate for name, value in before.items()}


# A share of the messages


def test_a_share_of_the_batches_is_chosen_by_their_numbers() -> None:
    def chosen(seed: int, name: str = "cut") -> list[int]:
        rule = LateCorrection(sg.LocalLoss(CLASSES), share=0.25, seed=seed)
        site = Site(name, (B, H), torch.float64, torch.device("cpu"), nn.Identity())
        asked = rule.bind(site)
        return [step for step in range(2000) if asked.wants_message(step)]

    assert chosen(0) == chosen(0, "another cut")
    assert chosen(0) != chosen(1)
    for seed in range(3):
        assert len(chosen(seed)) == pytest.approx(500, abs=60)  # three standard deviations
    rule = bound(LateCorrection(sg.LocalLoss(CLASSES), share=0.25))
    for step in range(20):
        info = Info(context=INFO.context, step=step)
        assert rule.credit(drawn(), info).final == (step not in chosen(0))
    with pytest.raises(ConfigError, match="interface 'cut': share=0.25 chooses batches by their numbers"):
        rule.credit(drawn(), Info(context=INFO.context))


def test_only_chosen_batches_are_corrected(monkeypatch: pytest.MonkeyPatch) -> None:
    corrected: list[tuple[str, int]] = []
    own = LateCorrection.correction

    def correction(self: LateCorrection, delta: Tensor, message: Message, info: Info) -> tuple[Tensor, float]:
        assert info.step is not None
        corrected.append((self.name, info.step))
        return own(self, delta, message, info)

    monkeypatch.setattr(LateCorrection, "correction", correction)
    rule = LateCorrection(sg.LocalLoss(CLASSES), share=0.5)
    train(rule, steps=24)
    chosen = [step for step in range(24) if rule.wants_message(step)]
    assert 6 < len(chosen) < 18
    for nth, cut in enumerate(reversed(CASES["linear"].at), 1):  # two steps late at every cut on the way down
        assert [step for name, step in corrected if name == cut] == [s for s in chosen if s + 2 * nth < 24]


def test_with_hardly_any_message_the_rule_is_alone_and_learns_nothing_from_above() -> None:
    local = LateCorrection(sg.LocalLoss(CLASSES), share=1e-12)
    found, alone = train(local, steps=12), train(sg.LocalLoss(CLASSES), steps=12)
    for name, value in alone.items():
        assert torch.equal(found[name.replace(".head.", ".rule.head.")], value), name
    silent = train(LateCorrection(sg.SyntheticGradient(context=CLASSES), share=1e-12), steps=12)
    tables = [value for name, value in silent.items() if name.endswith("table")]
    assert len(tables) == len(CASES["linear"].at)
    assert not any(table.any() for table in tables)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (
            lambda: LateCorrection(sg.rules.TrueGradient()),
            "around TrueGradient: by that rule the module waits",
        ),
        (
            lambda: LateCorrection(sg.HandOver(sg.LocalLoss(3), warm_up=2)),
            "around HandOver: by that rule the module waits",
        ),
        (
            lambda: LateCorrection(sg.SyntheticGradient(error_to_h=True)),
            "flows into h.*give error_to_h=False",
        ),
        (
            lambda: LateCorrection(LateCorrection(sg.LocalLoss(3))),
            "around LateCorrection: a rule that sends ahead",
        ),
        (lambda: sg.HandOver(LateCorrection(sg.LocalLoss(3))), "HandOver around LateCorrection"),
        (lambda: LateCorrection(sg.LocalLoss), "LocalLoss is a class"),
        (lambda: LateCorrection(sg.LocalLoss(3), -0.5), "weight=-0.5: expected a number, 0 or more"),
        (lambda: LateCorrection(sg.LocalLoss(3), math.nan), "weight=nan"),
        (lambda: LateCorrection(sg.LocalLoss(3), "all"), "weight='all'"),  # type: ignore[arg-type]
        (lambda: LateCorrection(sg.LocalLoss(3), share=0), "share=0: expected a number above 0 up to 1"),
        (lambda: LateCorrection(sg.LocalLoss(3), share=1.5), "share=1.5"),
        (lambda: LateCorrection(sg.LocalLoss(3), seed=-1), "seed=-1: expected"),
        (lambda: LateCorrection(sg.LocalLoss(3), recompute=1), "recompute=1: expected True or False"),  # type: ignore[arg-type]
    ],
)
def test_what_cannot_be_is_told(make: Callable[[], Rule], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        make()


def test_a_rule_that_gives_nothing_is_told() -> None:
    rule = bound(LateCorrection(sg.NoBackprop()))
    with pytest.raises(
        ConfigError, match="interface 'cut': LateCorrection around NoBackprop, which gave no credit"
    ):
        rule.credit(drawn(), INFO)


def test_freezing_inside_is_no_waiting() -> None:
    assert not LateCorrection(sg.HandOver(sg.SyntheticGradient(), freeze_after=3)).waits
