"""Every engine's timeline is the timetable that graph, lags and waiting rules say, event by event.

The timetables themselves are checked against tables written by hand, in ``tests/core/test_timetable.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

import synthgrad as sg
from synthgrad.core import ConfigError, Event, Rule, Timeline, timetable
from synthgrad.core.timetable import ALWAYS, ClockedEdge, ClockedNode, Schedule, Terms
from synthgrad.engines import (
    Boundary,
    Clocked,
    InProcess,
    Lag,
    LayerParallel,
    Locked,
    Node,
    Recurrent,
    Stages,
)
from synthgrad.engines.stages import run_in_memory
from synthgrad.engines.stages.transport import Transport
from synthgrad.rules import HandOver, NoBackprop, SyntheticInput, TrueGradient
from tests.engines import test_recurrent as recurrence
from tests.engines.clocked_toys import Cell, criterion, edge, made, stream
from tests.engines.test_layer_parallel import RULES as BATCHED
from tests.engines.test_layer_parallel import STACKS
from tests.networks import CASES, CLASSES, Case, Local

STEPS = 8

#: Rules, and what a timetable knows of them.
RULES: dict[str, tuple[Callable[[], Rule], Terms]] = {
    "at once": (lambda: sg.SyntheticGradient(context=CLASSES), Terms()),
    "by a loss of its own": (Local, Terms(listens=False)),
    "nothing": (NoBackprop, Terms(listens=False, credits=False)),
    "waits": (TrueGradient, Terms(listens=False, credits=False, waits=ALWAYS)),
    "waits at first": (lambda: HandOver(sg.SyntheticGradient(), warm_up=3), Terms(waits=3)),
    "waits, then nothing": (
        lambda: HandOver(NoBackprop(), warm_up=2),
        Terms(listens=False, credits=False, waits=2),
    ),
}
LAGS: dict[str, tuple[Lag, ...]] = {  # of the interfaces, in turn
    "none": (Lag(),),
    "observe": (Lag(observe=1),),
    "observe, some": (Lag(), Lag(observe=3), Lag(observe=1)),
    "forward": (Lag(forward=1),),
    "both": (Lag(forward=2, observe=1), Lag(), Lag(forward=1)),
}
CHAINS = ("linear", "batchnorm")
BRANCHES = ("two_headed", "shared_trunk")


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, 1e-3)


def assert_equal(timeline: Timeline, expected: Iterable[Event]) -> None:
    """Compare event by event; say where they part."""
    ours, theirs = [str(e) for e in timeline.events], [str(e) for e in expected]
    assert ours
    for k, (a, b) in enumerate(zip(ours, theirs, strict=False)):
        assert a == b, (
            f"event {k}: the engine did {a}, the timetable says {b}; before: {ours[max(k - 6, 0) : k]}"
        )
    assert ours[len(theirs) :] == theirs[len(ours) :] == []


def lagging(terms: Terms, lag: Lag) -> Terms:
    return replace(terms, forward=lag.forward, observe=lag.observe)


def unlocked(
    case: Case, rules: Mapping[str, Rule] | Rule, lags: Mapping[str, Lag], inputs: Any = None
) -> tuple[InProcess, Timeline]:
    net = sg.decouple(case.model(), case.at, rules, case.batch()[0], inputs=inputs)
    timeline = Timeline()
    trainer = InProcess(net, case.criterion, sgd, lags=lags, timeline=timeline)
    for x, y in case.batches(STEPS):
        trainer.step(x, y)
    return trainer, timeline


def compare(
    case: Case,
    given: Mapping[str, tuple[Callable[[], Rule], Terms]],
    lags: Mapping[str, Lag],
    inputs: Any = None,
) -> None:
    trainer, timeline = unlocked(case, {n: make() for n, (make, _) in given.items()}, lags, inputs)
    graph = trainer.net.graph
    interfaces = {
        n: replace(lagging(given[n][1], lags.get(n, Lag())), supplied=inputs is not None) for n in graph.sites
    }
    assert_equal(timeline, timetable.in_process(Schedule(graph.modules, interfaces, STEPS)))


def in_turn(names: Iterable[str], values: tuple[Any, ...]) -> dict[str, Any]:
    return {name: values[k % len(values)] for k, name in enumerate(names)}


# In process


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("lags", LAGS)
@pytest.mark.parametrize("case", CHAINS)
def test_in_process_chains(case: str, lags: str, rule: str) -> None:
    at = CASES[case].at
    compare(CASES[case], dict.fromkeys(at, RULES[rule]), in_turn(at, LAGS[lags]))


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("lags", ["none", "observe", "observe, some"])
@pytest.mark.parametrize("case", BRANCHES)
def test_in_process_branches(case: str, lags: str, rule: str) -> None:
    at = CASES[case].at
    compare(CASES[case], dict.fromkeys(at, RULES[rule]), in_turn(at, LAGS[lags]))


@pytest.mark.parametrize("lags", ["none", "observe", "observe, some"])
@pytest.mark.parametrize("case", [*CHAINS, *BRANCHES])
@pytest.mark.parametrize("rules", [("waits", "at once"), ("at once", "waits"), ("nothing", "waits at first")])
def test_in_process_with_different_rules(case: str, lags: str, rules: tuple[str, ...]) -> None:
    at = CASES[case].at
    compare(CASES[case], in_turn(at, tuple(RULES[r] for r in rules)), in_turn(at, LAGS[lags]))


@pytest.mark.parametrize("rule", ["at once", "nothing"])
@pytest.mark.parametrize("lags", [(Lag(),), (Lag(forward=-1),), (Lag(forward=-2, observe=1), Lag())])
def test_in_process_with_synthetic_inputs(rule: str, lags: tuple[Lag, ...]) -> None:
    case = CASES["linear"]
    compare(case, dict.fromkeys(case.at, RULES[rule]), in_turn(case.at, lags), SyntheticInput((6,)))


# The plain loop


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("case", [*CHAINS, *BRANCHES])
def test_locked(case: str, rule: str) -> None:
    made, (make, terms) = CASES[case], RULES[rule]
    net = sg.decouple(made.model(), made.at, make(), made.batch()[0])
    timeline = Timeline()
    trainer = Locked(net, made.criterion, sgd, timeline=timeline)
    for x, y in made.batches(3):
        trainer.step(x, y)
    schedule = Schedule(net.graph.modules, dict.fromkeys(net.graph.sites, terms), 3)
    assert_equal(timeline, timetable.locked(schedule))


# All layers in one batch


FORMS: list[dict[str, Any]] = [{}, {"fused": False}, {"compile": {"backend": "aot_eager"}}]


@pytest.mark.parametrize(
    ("rule", "options"),
    [
        *((rule, options) for rule in ("cdni", "local_loss", "no_bprop") for options in FORMS),
        *((rule, options) for rule in ("sobolev", "local") for options in FORMS[:2]),  # asked in turn
    ],
    ids=str,
)
@pytest.mark.parametrize("observe", [0, 2])
def test_layer_parallel(rule: str, observe: int, options: dict[str, Any]) -> None:
    if "compile" in options:
        torch.compiler.reset()
    stack, steps, timeline = STACKS["dense"], 11, Timeline()
    net = stack.net(BATCHED[rule]())
    engine = LayerParallel(net, nn.CrossEntropyLoss(), sgd, observe=observe, timeline=timeline, **options)
    for k in range(steps):
        engine.step(*stack.batch(k))
    terms = Terms(
        observe=observe, credits=rule != "no_bprop", listens=next(iter(net.interfaces.values())).rule.listens
    )
    schedule = timetable.chain(*net.interfaces, steps=steps, terms=terms)
    assert_equal(timeline, timetable.layer_parallel(schedule))


def test_layer_parallel_keeps_a_timeline_of_one_network_only() -> None:
    stack = STACKS["dense"]
    with pytest.raises(ConfigError, match="a timeline names modules"):
        LayerParallel(
            [stack.net(BATCHED["cdni"](), k) for k in range(2)],
            nn.CrossEntropyLoss(),
            sgd,
            timeline=Timeline(),
        )


# Recurrent


@pytest.mark.parametrize("options", [{}, {"window": 3}, {"window": 2, "mix": 0.5}, {"every": 2}], ids=str)
@pytest.mark.parametrize("rule", ["at once", "nothing"])
def test_recurrent(rule: str, options: dict[str, Any]) -> None:
    make, terms = RULES[rule] if rule == "nothing" else (lambda: sg.SyntheticGradient((4,)), Terms())
    net, timeline, every = recurrence.Network().double(), Timeline(), options.get("every", 1)
    state = net.initial_state(recurrence.B, None, torch.float64)
    boundary = Boundary(make(), state, batch_dim=1, observe_every=every)
    settings = {name: value for name, value in options.items() if name != "every"}
    trainer = Recurrent(net, boundary, recurrence.criterion, sgd, timeline=timeline, **settings)
    for x, y in recurrence.unrolls(7):
        trainer.step(x, y)
    expected = timetable.recurrent(7, terms, window=options.get("window", 1), observe_every=every)
    assert_equal(timeline, expected)


# Networks that tick at different rates

AT_ONCE, WAITING, NOTHING = Terms(), RULES["waits"][1], RULES["nothing"][1]
WIRINGS: dict[str, tuple[list[ClockedNode], list[ClockedEdge]]] = {
    "slow above": ([ClockedNode("A", 1, 2, 2), ClockedNode("B", 2, 2, 4)], [ClockedEdge("A", "B")]),
    "slow above, locked": (
        [ClockedNode("A", 1, 2, 2), ClockedNode("B", 2, 2, 4)],
        [ClockedEdge("A", "B", WAITING)],
    ),
    "slow below": ([ClockedNode("A", 4, 1), ClockedNode("B", 1, 3, 1)], [ClockedEdge("A", "B")]),
    "slow below, locked": (
        [ClockedNode("A", 4, 1), ClockedNode("B", 1, 3, 1)],
        [ClockedEdge("A", "B", WAITING)],
    ),
    "unrolls that do not fit": ([ClockedNode("A", 1, 3), ClockedNode("B", 2, 1, 2)], [ClockedEdge("A", "B")]),
    "back": (
        [ClockedNode("A", 1, 2, 1, AT_ONCE), ClockedNode("B", 2, 2, 2)],
        [ClockedEdge("A", "B"), ClockedEdge("B", "A")],
    ),
    "back, slow first": (
        [ClockedNode("B", 4), ClockedNode("A", 1, 1, 1, AT_ONCE)],
        [ClockedEdge("A", "B"), ClockedEdge("B", "A")],
    ),
    "itself": ([ClockedNode("A", 1, 2, 1)], [ClockedEdge("A", "A")]),
    "itself, locked": ([ClockedNode("A", 1, 2, 1)], [ClockedEdge("A", "A", WAITING)]),
    "nothing": ([ClockedNode("A"), ClockedNode("B", 1, 1, 1)], [ClockedEdge("A", "B", NOTHING)]),
    "no loss": ([ClockedNode("A", 1, 1, 1), ClockedNode("B", 2)], [ClockedEdge("A", "B")]),
    "one loss of two, locked": (
        [ClockedNode("A", 1, 1, 1), ClockedNode("B", 2, 1)],
        [ClockedEdge("A", "B", WAITING)],
    ),
    "two locked, one apart": (
        [ClockedNode("A", 1, 2), ClockedNode("B", 2, 1), ClockedNode("C", 3, 2, 6, AT_ONCE)],
        [ClockedEdge("B", "C"), ClockedEdge("A", "B", WAITING), ClockedEdge("C", "A"), ClockedEdge("A", "C")],
    ),
    "a cut within a lock": (
        [ClockedNode("A", 1, 2, 2), ClockedNode("B", 1, 2, 2)],
        [ClockedEdge("A", "B", WAITING), ClockedEdge("B", "A")],
    ),
    "a cut without credit within a lock": (
        [ClockedNode("A", 1, 2, 1), ClockedNode("B", 1, 2)],
        [ClockedEdge("A", "B", WAITING), ClockedEdge("B", "A", NOTHING)],
    ),
}
MAKE: dict[Terms, Callable[[], Rule]] = {
    AT_ONCE: sg.SyntheticGradient,
    WAITING: TrueGradient,
    NOTHING: NoBackprop,
}


@pytest.mark.parametrize("wiring", WIRINGS)
def test_clocked(wiring: str) -> None:
    clocks, wires = WIRINGS[wiring]
    steps, timeline, order = 26, Timeline(), [c.name for c in clocks]
    fed = {name: [w.sender for w in wires if w.receiver == name] for name in order}
    cells = made(*(Cell(*fed[name], "input") for name in order))
    nodes = [
        Node(c.name, cell, c.period, c.unroll, None if c.state is None else MAKE[c.state]())
        for c, cell in zip(clocks, cells, strict=True)
    ]
    edges = [
        edge(w.sender, w.receiver, MAKE[w.terms](), back=order.index(w.receiver) <= order.index(w.sender))
        for w in wires
    ]
    data = stream(steps, order, {c.name: c.target for c in clocks if c.target})
    losses = {c.name: criterion for c in clocks if c.target}
    trainer = Clocked(nodes, edges, losses, sgd, example=data[0][0], timeline=timeline)
    for x, y in data:
        trainer.step(x, y)
    assert_equal(timeline, timetable.clocked(clocks, wires, steps))


# Stages, in ranks of their own

STAGED = {
    "at once": (sg.SyntheticGradient, Terms()),
    **{name: RULES[name] for name in ("waits", "waits at first", "waits, then nothing", "nothing")},
}


@pytest.mark.parametrize("window", [0, 2])
@pytest.mark.parametrize("rule", STAGED)
def test_stages(rule: str, window: int) -> None:
    make, terms = STAGED[rule]
    schedule = timetable.chain("0", "1", steps=STEPS, terms=replace(terms, observe=window))
    for number, timeline in enumerate(run_in_memory(3, staged, make, window)):
        assert_equal(timeline, timetable.stage(schedule, number))


def staged(transport: Transport, make: Callable[[], Rule], window: int) -> Timeline:
    """Train a stage; return its timeline."""
    case, timeline = CASES["linear"], Timeline()
    batches = case.batches(STEPS)
    model = nn.Sequential(nn.Linear(6, 7), nn.Linear(7, 7), nn.Linear(7, CLASSES)).double()
    net = sg.decouple(model, ["0", "1"], make(), batches[0][0])
    options: dict[str, Any] = {"window": window, "deterministic": True, "timeline": timeline}
    with Stages(net, case.criterion, sgd, transport=transport, accumulate=1, **options) as stages:
        for x, y in batches:
            stages.step(x if transport.rank == 0 else None, y)
    return timeline
