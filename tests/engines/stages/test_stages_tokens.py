"""Stages count the tokens of each batch: with ragged labels they are backpropagation, and messages are right."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import synthgrad as sg
from synthgrad.core import Monitor, Rule
from synthgrad.engines import InProcess, Lag, Stages
from synthgrad.rules import InterlockedLoss, LateCorrection, LocalLoss, TrueGradient, heads
from tests.engines.stages.places import InMemory, Place
from tests.engines.stages.processes import Processes
from tests.engines.test_tokens import Correcting, recorded
from tests.engines.token_toys import (
    CUTS,
    NONE,
    Heard,
    V,
    assert_heard,
    assert_measured,
    assert_weights,
    backprop,
    batches,
    by_example,
    decoupled,
    over_tokens,
    sgd,
    still,
)

STEPS = 4


def trained(place: Place, rule: Any, criterion: Any, at: tuple[str, ...], window: int, steps: int) -> Any:
    """Train as one stage of some; return its network with all weights."""
    net = decoupled(rule(), at)
    settings: dict[str, Any] = {"window": window, "deterministic": True, "accumulate": 1, "timeout_s": 60.0}
    with Stages(net, criterion, sgd, transport=place.transport, **settings) as engine:
        for x, y in batches(steps):
            engine.step(x if place.rank == 0 else None, y)
        engine.gather()
    return {name: p.detach() for name, p in net.model.named_parameters()}


@pytest.mark.parametrize("criterion", [over_tokens, by_example])
@pytest.mark.parametrize("rule", [TrueGradient, recorded])
def test_stages_are_backpropagation(four: InMemory, rule: Any, criterion: Any) -> None:
    expected = backprop(STEPS)[-1]
    net = decoupled(TrueGradient()).model
    for weights in four.run(trained, rule, criterion, CUTS, 0, STEPS):
        net.load_state_dict(weights, strict=False)
        assert_weights(net, expected)


@pytest.mark.parametrize("rule", [TrueGradient, Heard])
def test_late_messages_are_those_of_the_in_process_engine(four: InMemory, rule: Any) -> None:
    net = decoupled(rule())
    engine = InProcess(net, by_example, sgd, lags=dict.fromkeys(CUTS, Lag(observe=2)))
    for x, y in batches(8):
        engine.step(x, y)
    for weights in four.run(trained, rule, by_example, CUTS, 2, 8):
        for name, value in weights.items():
            expected = net.model.get_parameter(name)
            torch.testing.assert_close(
                value, expected, rtol=1e-9, atol=1e-11, msg=lambda m, n=name: f"{n}: {m}"
            )


def corrected() -> Rule:
    torch.manual_seed(3)
    return LateCorrection(LocalLoss(V, heads.token_head(0)))


def interlocked() -> Rule:
    torch.manual_seed(3)
    return InterlockedLoss(V, heads.token_head(1))


@pytest.mark.parametrize("rule", [corrected, interlocked])
def test_rules_of_which_a_module_runs_backward_twice(four: InMemory, rule: Any) -> None:
    net = decoupled(rule())
    engine = InProcess(net, over_tokens, sgd, lags=dict.fromkeys(CUTS, Lag(observe=2)))
    for x, y in batches(8):
        engine.step(x, y)
    start = decoupled(rule()).model
    for weights in four.run(trained, rule, over_tokens, CUTS, 2, 8):
        for name, value in weights.items():
            assert torch.equal(value, net.model.get_parameter(name)), name
            assert not torch.equal(value, start.get_parameter(name)), name


def in_a_process(place: Place) -> Any:
    """Train one of two stages."""
    return trained(place, TrueGradient, by_example, CUTS[1:2], 0, STEPS)


def test_two_processes_are_backpropagation(two_processes: Processes) -> None:
    expected = backprop(STEPS)[-1]
    net = decoupled(TrueGradient()).model
    for weights in two_processes.run(in_a_process):
        net.load_state_dict(weights, strict=False)
        assert_weights(net, expected)


def listened(place: Place, criterion: Any, window: int, *, travels: bool) -> Any:
    """Return what the rule of this stage has heard, and what its monitor has measured."""
    net, monitor = decoupled(Heard()), Monitor(every=1)
    settings: dict[str, Any] = {
        "window": window,
        "deterministic": True,
        "timeout_s": 60.0,
        "monitor": monitor,
    }
    settings |= {"target": batches(1)[0][1]} if travels else {}
    with Stages(net, criterion, still, transport=place.transport, **settings) as engine:
        for x, y in batches(STEPS + window):
            first = place.rank == 0
            engine.step(x if first else None, y if first or not travels else None)
    if place.rank == len(CUTS):
        return None
    rule: Any = net.interfaces[CUTS[place.rank]].rule
    return rule.messages, rule.losses, monitor.collect()


@pytest.mark.parametrize(("window", "travels"), [(0, False), (0, True), (2, False)])
@pytest.mark.parametrize("criterion", [over_tokens, by_example])
def test_rules_hear_the_gradient_of_the_mean_over_an_examples_labels(
    four: InMemory, criterion: Any, window: int, travels: bool
) -> None:
    found = four.run(lambda place: listened(place, criterion, window, travels=travels))[:-1]
    net = decoupled(Heard())
    for name, (messages, losses, measured) in zip(CUTS, found, strict=True):
        rule: Any = net.interfaces[name].rule
        rule.messages = messages
        assert len(messages) >= STEPS
        if name == CUTS[-1]:
            assert (losses[0] is None) == (criterion is over_tokens)
        assert_measured(measured, len(messages), (name,))
    assert_heard(net, STEPS + window)


def stretch(place: Place, rule: Any, first: int, last: int, files: list[bytes] | None, *, saves: bool) -> Any:
    """Train from one step to another, from a state where there is one; return the state, or the weights."""
    net = decoupled(rule())
    saved = None if files is None else torch.load(io.BytesIO(files[place.rank]), weights_only=True)
    if saved is not None:
        net.load_state_dict(saved["net"])
    settings: dict[str, Any] = {"window": 2, "deterministic": True, "timeout_s": 60.0}
    with Stages(net, by_example, sgd, transport=place.transport, **settings) as engine:
        if saved is not None:
            engine.load_state_dict(saved["engine"])
        for x, y in batches(last)[first:]:
            engine.step(x if place.rank == 0 else None, y)
        if saves:
            file = io.BytesIO()
            torch.save({"net": net.state_dict(), "engine": engine.state_dict()}, file)
            return file.getvalue()
        engine.gather()
    return {name: p.detach().clone() for name, p in net.model.named_parameters()}


@pytest.mark.parametrize("rule", [TrueGradient, Heard])
def test_batches_in_flight_keep_their_shares(four: InMemory, rule: Any) -> None:
    whole = four.run(lambda place: stretch(place, rule, 0, 8, None, saves=False))
    files = four.run(lambda place: stretch(place, rule, 0, 4, None, saves=True))
    resumed = four.run(lambda place: stretch(place, rule, 4, 8, files, saves=False))
    for name, value in whole[0].items():
        assert torch.equal(resumed[0][name], value), name


# -- refused ------------------------------------------------------------------------------------------


def test_a_rule_that_corrects_and_learns_from_messages(two: InMemory) -> None:
    for outcome in two.outcomes(trained, Correcting, over_tokens, CUTS[:1], 1, 1):
        assert outcome.error is not None
        assert outcome.error.startswith(
            "ConfigError: the rule at interface 'block1', Correcting, corrects its credit"
        )


def fed(place: Place, x: Tensor, y: Tensor, given: dict[str, Any]) -> None:
    net = decoupled(Heard(), CUTS[:1])
    settings: dict[str, Any] = {"window": 0, "deterministic": True, "timeout_s": 60.0}
    with Stages(net, over_tokens, sgd, transport=place.transport, **settings) as engine:
        engine.step(x if place.rank == 0 else None, y, **(given if place.rank == 0 else {}))


def test_bad_batches(two: InMemory) -> None:
    x, y = batches(1)[0]
    outside, wrong, hidden = x.clone(), y.clone(), torch.full_like(y, NONE)
    outside[0, 0], wrong[0, 0] = V, V
    for batch, rank, expected in (
        ((outside, y, {}), 0, "ConfigError: got ids from 0 to 11"),
        ((x, wrong, {}), 1, "ContextError: the criterion got labels from 0 to 11 for scores of 11 classes"),
        ((x, y[:, :-1], {}), 1, "ShapeError: the criterion got labels of shape (20,)"),
        ((x, hidden, {}), 1, "ContextError: the loss of step 0 is 0 / 0, because no label is left"),
        ((x, y[:, 0], {}), 0, "ContextError: reduction='tokens' counts the labels of a batch"),
    ):
        error = two.outcomes(fed, *batch)[rank].error
        assert error is not None
        assert error.startswith(expected), error


class Counting(nn.Module):
    """A network that is told the number of labels, as by the trainer of transformers."""

    def __init__(self) -> None:
        super().__init__()
        self.low, self.top = nn.Embedding(V, 8), nn.Linear(8, V)

    def forward(self, ids: Tensor, num_items_in_batch: Tensor) -> Tensor:
        return self.top(self.low(ids)) + 0 * num_items_in_batch


def told(place: Place) -> None:
    x, y = batches(1)[0]
    given = {"ids": x, "num_items_in_batch": torch.tensor(9.0)}
    net = sg.decouple(Counting(), ["low"], Heard(), given, reduction="tokens")
    settings: dict[str, Any] = {"window": 0, "deterministic": True, "timeout_s": 60.0}
    with Stages(net, over_tokens, sgd, transport=place.transport, **settings) as engine:
        engine.step(given if place.rank == 0 else None, y)


def test_a_number_of_labels_that_only_one_stage_knows(two: InMemory) -> None:
    error = two.outcomes(told)[0].error
    assert error is not None
    assert error.startswith(
        "ConfigError: stage 'low' was given num_items_in_batch, of which other stages need not know"
    )
