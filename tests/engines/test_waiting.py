"""Modules that wait for the true message: backpropagation, delayed gradients and hand-over by one mechanism."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import synthgrad as sg
from synthgrad.core import ConfigError, Timeline
from synthgrad.engines import InProcess, Lag, Locked
from synthgrad.rules import HandOver, TrueGradient
from tests.networks import CASES, CLASSES, Case

STEPS = 8
ENGINES: dict[str, Any] = {"in_process": InProcess, "plain": Locked}


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, 0.1, momentum=0.9)


def backprop(case: Case, steps: int = STEPS) -> nn.Module:
    model = case.model()
    trainer = Locked(model, case.criterion, sgd)
    for x, y in case.batches(steps):
        trainer.step(x, y)
    return model


def assert_same(ours: nn.Module, theirs: nn.Module) -> None:
    expected = theirs.state_dict()
    for name, value in ours.state_dict().items():
        assert torch.allclose(value, expected[name], rtol=1e-11, atol=1e-12), f"'{name}' differs"


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_waiting_everywhere_is_backpropagation(case: Case, engine: str) -> None:
    net = sg.decouple(case.model(), case.at, TrueGradient(), case.batch()[0])
    trainer = ENGINES[engine](net, case.criterion, sgd)
    for x, y in case.batches(STEPS):
        trainer.step(x, y)
    assert_same(net.model, backprop(case))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("case", [CASES["batchnorm"], CASES["two_headed"], CASES["shared_trunk"]], ids=str)
def test_warming_up_is_backpropagation_and_teaches_the_rule(case: Case, engine: str) -> None:
    rule = HandOver(sg.SyntheticGradient(), warm_up=STEPS)
    net = sg.decouple(case.model(), case.at, rule, case.batch()[0])
    trainer = ENGINES[engine](net, case.criterion, sgd, rule_options={"lr": 1e-3})
    for x, y in case.batches(STEPS):
        trainer.step(x, y)
    assert_same(net.model, backprop(case))
    learned = [p.abs().max() > 0 for name, p in net.rules.named_parameters() if name.endswith("weight")]
    assert all(learned)
    x, y = case.batch(seed=99)
    before = copy.deepcopy(net.model.state_dict())
    trainer.step(x, y)  # the first step after the warm-up: no longer backpropagation
    assert any(not torch.equal(v, before[n]) for n, v in net.model.state_dict().items())
    reference = backprop(case)
    after = Locked(reference, case.criterion, sgd)
    after.step(x, y)
    assert any(not torch.allclose(v, reference.state_dict()[n]) for n, v in net.model.state_dict().items())


def delayed_by_hand(lag: int, shrink: float) -> nn.Module:
    """Three modules; each learns ``lag`` steps after the one above it has, by the graph and weights of then."""
    case = CASES["linear"]
    model = case.model()
    parts = [model[:2], model[2:4], model[4:]]  # type: ignore[index]
    optimizers = [torch.optim.SGD(p.parameters(), 0.1) for p in parts]
    waiting: list[dict[int, tuple[Tensor, Tensor]]] = [{}, {}]  # by step of arrival: output, gradient
    runs: list[list[tuple[nn.Module, Tensor, Tensor]]] = []
    for step, (x, y) in enumerate(case.batches(STEPS)):
        fed, graphs = x, []
        for part in parts:
            frozen = copy.deepcopy(part)  # the weights of now
            leaf = fed.detach().requires_grad_()
            out = frozen(leaf)
            graphs.append((frozen, leaf, out))
            fed = out
        runs.append(graphs)
        # the top learns at once, what is below when its gradient has come
        learn: list[tuple[int, int, Tensor]] = [(2, step, F.cross_entropy(graphs[2][2], y))]
        for k in (1, 0):
            if step in waiting[k]:
                learn.append((k, *waiting[k][step]))  # type: ignore[arg-type]
        for k, born, root in learn:
            frozen, leaf, out = runs[born][k]
            frozen.zero_grad()
            if k == 2:
                root.backward()
            else:
                out.backward(root)
            for live, then in zip(parts[k].parameters(), frozen.parameters(), strict=True):
                live.grad = then.grad
            optimizers[k].step()
            if k:
                assert leaf.grad is not None
                waiting[k - 1][step + lag] = (born, leaf.grad * shrink)  # type: ignore[assignment]
    return model


@pytest.mark.parametrize(("lag", "shrink"), [(1, 1.0), (2, 1.0), (3, 0.5)])
def test_delayed_gradients_equal_the_same_written_out(lag: int, shrink: float) -> None:
    case = CASES["linear"]
    net = sg.decouple(case.model(), case.at, TrueGradient(shrink), case.batch()[0])
    lags = dict.fromkeys(case.at, Lag(observe=lag))
    trainer = InProcess(net, case.criterion, lambda p: torch.optim.SGD(p, 0.1), lags=lags)
    updated = [trainer.step(x, y).updated for x, y in case.batches(STEPS)]
    assert_same(net.model, delayed_by_hand(lag, shrink))
    assert [u.count("3") for u in updated] == [0] * lag + [1] * (STEPS - lag)
    assert [u.count("1") for u in updated] == [0] * 2 * lag + [1] * (STEPS - 2 * lag)


def test_delayed_gradients_with_batch_norm_and_a_held_batch() -> None:
    case = CASES["batchnorm"]
    net = sg.decouple(case.model(), case.at, TrueGradient(), case.batch()[0])
    trainer = InProcess(net, case.criterion, sgd, lags=dict.fromkeys(case.at, Lag(forward=1, observe=2)))
    for x, y in case.batches(20):
        trainer.step(x, y)
    plain = case.model().state_dict()
    assert all(
        not torch.equal(v, plain[n]) for n, v in net.model.state_dict().items() if n.endswith("weight")
    )
    assert all(v.isfinite().all() for v in net.state_dict().values())


def test_falls_back_while_the_cosine_is_low_and_hands_over_when_it_is_not() -> None:
    case, timeline = CASES["linear"], Timeline()
    rule = HandOver(sg.SyntheticGradient(context=CLASSES), min_cosine=0.5, memory=0.5)
    net = sg.decouple(case.model(), case.at, rule, case.batch()[0])
    trainer = InProcess(
        net, case.criterion, lambda p: torch.optim.SGD(p, 0.02), timeline=timeline, rule_options={"lr": 0.2}
    )
    x, y = case.batch(size=32)
    locked: list[bool] = []
    for _ in range(200):
        timeline.events.clear()
        trainer.step(x, y)
        order = timeline.order("update")
        locked.append(order.index("update 3") > order.index("update output"))
    assert locked[0]  # nothing has been measured yet
    assert not locked[-1]  # one batch over and over is soon predicted
    assert net.interfaces["3"].rule.cosine.item() > 0.5


def test_frozen_rules_learn_no_more() -> None:
    case = CASES["linear"]
    rule = HandOver(sg.SyntheticGradient(context=CLASSES), freeze_after=3)
    for engine in ENGINES.values():
        net = sg.decouple(case.model(), case.at, rule, case.batch()[0])
        trainer = engine(net, case.criterion, sgd)
        seen = []
        for x, y in case.batches(6):
            trainer.step(x, y)
            seen.append({n: p.clone() for n, p in net.rules.named_parameters()})
        assert all(not torch.equal(seen[0][n], seen[2][n]) for n in seen[0])
        # momentum of the optimizer would move them on if their gradient were zero instead of absent
        assert all(torch.equal(seen[2][n], seen[5][n]) for n in seen[0])


def test_the_count_of_batches_survives_a_resume() -> None:
    case = CASES["linear"]
    rule = HandOver(sg.SyntheticGradient(context=CLASSES), warm_up=4)
    net = sg.decouple(case.model(), case.at, rule, case.batch()[0])
    trainer = InProcess(net, case.criterion, sgd)
    for x, y in case.batches(3):
        trainer.step(x, y)
    fresh = sg.decouple(case.model(), case.at, rule, case.batch()[0])
    fresh.load_state_dict(net.state_dict())
    timeline = Timeline()
    again = InProcess(fresh, case.criterion, sgd, timeline=timeline)
    again.step(*case.batch())
    assert timeline.order("update")[0] == "update output"  # the last batch of the warm-up
    timeline.events.clear()
    again.step(*case.batch())
    assert timeline.order("update")[0] == "update 1"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: HandOver(nn.Linear(1, 1)), "expected a rule"),  # type: ignore[arg-type]
        (lambda: HandOver(sg.NoBackprop(), warm_up=-1), "warm_up=-1"),
        (lambda: HandOver(sg.NoBackprop(), freeze_after=-2), "freeze_after=-2"),
        (lambda: HandOver(sg.NoBackprop(), min_cosine=2.0), "min_cosine=2.0"),
        (lambda: HandOver(sg.NoBackprop(), memory=1.0), "memory=1.0"),
        (lambda: TrueGradient(0.0), "shrink=0.0"),
    ],
)
def test_bad_arguments(make: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()


def test_a_network_compiled_as_a_whole_is_refused() -> None:
    case = CASES["linear"]
    net = sg.decouple(case.model(), case.at, HandOver(sg.SyntheticGradient(), warm_up=2), case.batch()[0])
    net.compile(fullgraph=True)
    with pytest.raises(Exception, match="Observed exception|compiled as a"):  # torch's words, around ours
        net(case.batch()[0])
