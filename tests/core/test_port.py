"""The port: the two questions to a rule, in the units, with the guard, the monitor and the timeline of every engine."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import synthgrad as sg
from synthgrad.core import (
    Batch,
    ConfigError,
    Credit,
    DivergedError,
    Guard,
    InFlight,
    Info,
    InputPort,
    Instruments,
    Message,
    Monitor,
    Port,
    Rule,
    Site,
    Supply,
    Timeline,
    Units,
)
from synthgrad.rules import SyntheticInput, TrueGradient

B, H = 4, 3


class Scaled(Rule):
    """δ̂ = w ⊙ h; learns the squared distance to the message, and from a loss of its own if asked to.

    Attributes:
        asked: what ``observe`` was given as pending, by call.
    """

    def __init__(self, *, own: bool = False) -> None:
        super().__init__()
        self.own = own
        self.asked: list[int] = []

    def build(self, site: Site) -> None:
        self.w = nn.Parameter(torch.full((H,), 2.0, dtype=site.dtype))

    def credit(self, h: Tensor, info: Info) -> Credit:
        prediction = self.w * h.detach()
        loss = self.w.sum() if self.own else None
        return Credit(prediction.detach(), loss=loss, pending=(prediction,))

    def observe(self, h: Tensor, info: Info, message: Message, pending: tuple[Tensor, ...] = ()) -> Tensor:
        self.asked.append(len(pending))
        (prediction,) = pending or (self.w * h,)
        return (prediction - message.gradient).square().sum() / len(h)


def bound(rule: Rule) -> Any:
    return rule.bind(Site("cut", (B, H), torch.float64, torch.device("cpu"), nn.Identity()))


def activation(seed: int = 0) -> Tensor:
    return torch.randn(B, H, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def asked(port: Port, h: Tensor | None = None, version: int = 0) -> InFlight:
    return port.ask(activation() if h is None else h, Batch(Info(step=5), "target", 5), version)


@pytest.mark.parametrize(
    ("units", "factor"),
    [(Units(), 0.25), (Units("sum"), 1.0), (Units(lambda h: 8.0), 0.125), (Units("mean", lambda: 3.0), 0.75)],
    ids=["mean", "sum", "callable", "scaled"],
)
def test_units_are_converted_there_and_back(units: Units, factor: float) -> None:
    delta = activation()
    torch.testing.assert_close(units.to_criterion(delta), delta * factor, rtol=1e-15, atol=0)
    torch.testing.assert_close(units.to_criterion(delta, 0.5), delta * factor / 2, rtol=1e-15, atol=0)
    torch.testing.assert_close(units.to_example(delta), delta / factor, rtol=1e-15, atol=0)
    changed = delta.clone()
    assert units.to_example_(changed) is changed
    torch.testing.assert_close(changed, delta / factor, rtol=1e-15, atol=0)


def test_ask_returns_what_the_module_below_learns_from_in_the_units_of_the_criterion() -> None:
    timeline = Timeline()
    port = Port(bound(Scaled()), Units(), Instruments(timeline=timeline, step=7))
    flight = asked(port)
    grad = port.learned_from(flight)
    assert grad is not None
    torch.testing.assert_close(grad, activation() * 2 / B, rtol=1e-15, atol=0)
    assert (flight.name, flight.info.step, flight.batch.target, flight.waits) == ("cut", 5, "target", False)
    assert not flight.h.requires_grad
    assert [str(e) for e in timeline.events] == ["7:credit(cut)@5"]


def test_a_rule_learns_from_its_own_loss_when_it_is_asked() -> None:
    rule = bound(Scaled(own=True))
    asked(Port(rule, Units()))
    assert rule.w.grad.tolist() == [1.0] * H


def test_a_message_in_half_precision_is_refused() -> None:
    with pytest.raises(ConfigError, match="'cut': got a message in float16.*bfloat16"):
        asked(Port(bound(Scaled()), Units()), activation().half())


def test_an_answer_goes_from_the_units_of_the_criterion_to_those_of_an_example_and_is_learned_from() -> None:
    timeline, monitor = Timeline(), Monitor(every=1)
    rule = bound(Scaled())
    port = Port(rule, Units(), Instruments(Guard(), monitor, timeline, step=7))
    flight = asked(port)
    fed = port.feed(flight, readers=2)
    assert fed.requires_grad
    assert (flight.fed is fed, flight.missing) == (True, 2)
    (fed * 3).sum().div(B).backward()  # a mean over the batch of 3 · Σ h
    assert fed.grad is not None
    loss = torch.ones(B)
    port.instruments.step = 9
    port.answer(flight, fed.grad, loss)
    assert (flight.fed, flight.missing) == (None, 0)
    assert flight.message is not None
    torch.testing.assert_close(flight.message.gradient, torch.full((B, H), 3.0, dtype=torch.float64))
    assert flight.message.loss is loss
    port.observe(flight, version=0)
    # d/dw Σ (w h − 3)² / B
    expected = (2 * (2 * flight.h - 3) * flight.h).sum(0) / B
    torch.testing.assert_close(rule.w.grad, expected)
    assert [str(e) for e in timeline.events] == [
        "7:credit(cut)@5", "9:message(cut)@5", "9:observe(cut)@5",
    ]  # fmt: skip
    quality = monitor.collect()["cut"]
    assert quality.cosine == pytest.approx(
        float(nn.functional.cosine_similarity(2 * flight.h.flatten(), torch.full((B * H,), 3.0).double(), 0))
    )


@pytest.mark.parametrize(("version", "pending"), [(0, 1), (1, 0)])
def test_a_prediction_is_used_again_while_the_parameters_are_the_same(version: int, pending: int) -> None:
    rule = bound(Scaled())
    port = Port(rule, Units())
    flight = asked(port, version=0)
    port.receive(flight, Message(activation(1)))
    port.observe(flight, version)
    assert rule.asked == [pending]
    expected = (2 * (2 * flight.h - activation(1)) * flight.h).sum(0) / B
    torch.testing.assert_close(rule.w.grad, expected)


@pytest.mark.parametrize("settled", [True, False])
def test_of_answers_that_are_learned_from_together_each_counts_for_its_share(*, settled: bool) -> None:
    rule = bound(Scaled())
    port = Port(rule, Units())
    for k in range(2):
        flight = asked(port)
        if settled:
            flight.settle()
        port.receive(flight, Message(activation(k + 1)))
        port.observe(flight, 0, share=2)
    h = activation()
    messages = (activation(1) + activation(2)) / 2
    torch.testing.assert_close(rule.w.grad, (2 * (2 * h - messages) * h).sum(0) / B)


@pytest.mark.parametrize(
    ("rule", "monitored", "learns", "wanted"),
    [
        (Scaled(), False, True, True),
        (Scaled(), False, False, False),  # the modules above run forward only
        (sg.LocalLoss(H), False, True, False),
        (sg.LocalLoss(H), True, True, True),  # the monitor compares its credit
        (sg.NoBackprop(), True, True, False),  # it gives none
    ],
    ids=["listens", "forward only", "local", "local, monitored", "none, monitored"],
)
def test_an_answer_is_asked_for_where_somebody_looks_at_it(
    rule: Rule, monitored: bool, learns: bool, wanted: bool
) -> None:
    port = Port(bound(rule), Units(), Instruments(monitor=Monitor() if monitored else None))
    flight = port.ask(activation(), Batch(Info(context=torch.zeros(B, dtype=torch.int64))), 0)
    fed = port.feed(flight, readers=3, learns=learns)
    assert (fed.requires_grad, flight.missing) == (wanted, 3 if wanted else 0)


def test_a_module_that_waits_is_handed_the_answer_once_in_the_units_of_the_criterion() -> None:
    port = Port(bound(TrueGradient(shrink=0.5)), Units())
    flight = asked(port)
    assert port.learned_from(flight) is None
    got: list[tuple[Tensor, Tensor | None]] = []
    flight.release = lambda gradient, loss: got.append((gradient, loss))
    assert flight.waits
    assert port.feed(flight).requires_grad  # it does not listen, but somebody waits
    port.receive(flight, Message(activation(1), torch.ones(B)))
    port.release(flight)
    port.release(flight)
    ((gradient, loss),) = got
    torch.testing.assert_close(gradient, activation(1) * 0.5 / B)
    assert loss is not None
    assert not flight.waits


def test_the_guard_names_interface_and_step() -> None:
    port = Port(bound(Scaled()), Units(), Instruments(Guard(), step=3))
    flight = asked(port)
    with pytest.raises(DivergedError, match="'cut'.*step 3"):
        port.receive(flight, Message(torch.full((B, H), float("nan"))))


def test_an_input_port_supplies_and_learns() -> None:
    timeline = Timeline()
    x = torch.randn(B, 5, dtype=torch.float64)
    site = Site("cut", (B, H), torch.float64, torch.device("cpu"), nn.Identity(), inputs=(B, 5))
    rule: Any = SyntheticInput().bind(site)
    port = InputPort(rule, Instruments(timeline=timeline, step=2))
    batch = Batch(Info(inputs=x), entered=1)
    supply = port.supply(batch)
    assert isinstance(supply, Supply)
    assert supply.h.shape == (B, H)
    assert not supply.h.requires_grad
    assert port.observe(batch, activation(), supply.pending)
    with_pending = [p.grad.clone() for p in rule.parameters()]
    rule.zero_grad()
    assert port.observe(batch, activation())
    for a, b in zip(with_pending, rule.parameters(), strict=True):
        torch.testing.assert_close(a, b.grad)
        assert a.abs().max() > 0
    assert [str(e) for e in timeline.events] == ["2:supply(cut)@1"]


# -- what is saved ----------------------------------------------------------------------------------------


def in_flight(port: Port, *, fed: bool, answered: bool) -> InFlight:
    flight = asked(port)
    flight.due, flight.reads = 9, 2
    if fed:
        leaf = port.feed(flight, readers=3)
        leaf.grad = activation(4)
    if answered:
        port.receive(flight, Message(activation(5), torch.arange(B)))
    return flight


@pytest.mark.parametrize("fed", [True, False])
@pytest.mark.parametrize("answered", [True, False])
def test_what_is_in_flight_can_be_saved(tmp_path: Any, *, fed: bool, answered: bool) -> None:
    port = Port(bound(Scaled()), Units())
    flight = in_flight(port, fed=fed, answered=answered)
    torch.save(flight.state_dict(), tmp_path / "flight.pt")
    found = InFlight.from_state(torch.load(tmp_path / "flight.pt", weights_only=True))
    assert (found.name, found.due, found.reads, found.missing) == ("cut", 9, 2, flight.missing)
    assert (found.batch.entered, found.batch.target, found.info.step) == (5, "target", 5)
    assert torch.equal(found.h, flight.h)
    assert found.credit is not None
    assert flight.credit is not None
    assert found.credit.delta is not None
    assert flight.credit.delta is not None
    assert torch.equal(found.credit.delta, flight.credit.delta)
    assert found.credit.pending == ()
    if fed:
        assert found.fed is not None
        assert found.fed.requires_grad
        assert found.fed.grad is not None
        assert torch.equal(found.fed.grad, activation(4))
    else:
        assert found.fed is None
    if answered:
        assert found.message is not None
        assert torch.equal(found.message.gradient, activation(5))
        assert torch.equal(found.message.loss, torch.arange(B))  # type: ignore[arg-type]
    else:
        assert found.message is None


def test_what_was_saved_is_learned_from_as_if_nothing_had_been() -> None:
    rule, other = bound(Scaled()), bound(Scaled())
    flight = in_flight(Port(rule, Units()), fed=False, answered=True)
    Port(rule, Units()).observe(flight, version=0)
    again = InFlight.from_state(in_flight(Port(other, Units()), fed=False, answered=True).state_dict())
    Port(other, Units()).observe(again, version=0)  # the prediction is made anew, whatever the version
    assert other.asked == [0]
    torch.testing.assert_close(other.w.grad, rule.w.grad, rtol=1e-15, atol=0)
