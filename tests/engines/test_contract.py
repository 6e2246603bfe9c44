"""What every rule must do in every engine. A method in the registry is enrolled by being there."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from torch.nn import functional as F

import synthgrad as sg
from synthgrad import rules
from synthgrad.core import Decoupled
from synthgrad.engines import InProcess, Lag, Locked
from tests.engines.rule_registry import RULES, exported
from tests.networks import CASES, CLASSES, Case

ENGINES: dict[str, Any] = {"in_process": InProcess, "plain": Locked}
every_rule = pytest.mark.parametrize("rule", RULES)
every_engine = pytest.mark.parametrize("engine", ENGINES)
networks = pytest.mark.parametrize("case", [CASES["batchnorm"], CASES["conv"]], ids=["dense", "conv"])


def adam(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, 1e-2)


def build(case: Case, rule: str, dtype: torch.dtype = torch.float64) -> Decoupled:
    torch.manual_seed(2)
    return sg.decouple(case.model(dtype), case.at, RULES[rule](), case.batch(dtype=dtype)[0])


def train(net: Decoupled, engine: str, case: Case, steps: int, **options: Any) -> Any:
    dtype = next(net.parameters()).dtype
    trainer = ENGINES[engine](net, case.criterion, adam, **options)
    for x, y in case.batches(steps, dtype):
        trainer.step(x, y, ids=torch.arange(len(y)))
    return trainer


def about(y: torch.Tensor) -> sg.core.Info:
    """Everything that any rule may want to know of a batch."""
    return sg.core.Info(context=y, ids=torch.arange(len(y)), step=0)


def test_every_exported_rule_is_enrolled() -> None:
    enrolled = {type(make()) for make in RULES.values()} | {rules.Oracle}  # the oracle has its own tests
    missing = exported() - enrolled
    assert not missing, f"enter {missing} into RULES of rule_registry.py"


@every_rule
@every_engine
@networks
def test_same_seed_same_weights(rule: str, engine: str, case: Case) -> None:
    twins = [build(case, rule) for _ in range(2)]
    for net in twins:
        train(net, engine, case, 4)
    for name, value in twins[0].state_dict().items():
        assert torch.equal(value, twins[1].state_dict()[name]), name


@every_rule
@every_engine
@networks
def test_resume_from_a_file_continues_as_if_nothing_had_happened(rule: str, engine: str, case: Case) -> None:
    whole, half = build(case, rule), build(case, rule)
    train(whole, engine, case, 6)
    first = train(half, engine, case, 3)
    buffer = io.BytesIO()
    torch.save({"net": half.state_dict(), "engine": first.state_dict()}, buffer)
    buffer.seek(0)
    state = torch.load(buffer, weights_only=True)
    fresh = build(case, rule)
    second = ENGINES[engine](fresh, case.criterion, adam)
    fresh.load_state_dict(state["net"])
    second.load_state_dict(state["engine"])
    for x, y in case.batches(6)[3:]:
        second.step(x, y, ids=torch.arange(len(y)))
    for name, value in whole.state_dict().items():
        assert torch.equal(value, fresh.state_dict()[name]), name


@every_rule
@every_engine
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtype_of_the_model_is_that_of_its_rules(rule: str, engine: str, dtype: torch.dtype) -> None:
    net = build(CASES["batchnorm"], rule, dtype)
    train(net, engine, CASES["batchnorm"], 2)
    assert {v.dtype for v in net.state_dict().values() if v.is_floating_point()} == {dtype}


@every_rule
def test_messages_that_come_late(rule: str) -> None:
    case = CASES["batchnorm"]
    net = build(case, rule)
    train(net, "in_process", case, 8, lags={"0": Lag(0, 3), "1": Lag(2, 1)})
    assert all(v.isfinite().all() for v in net.state_dict().values())


@every_rule
def test_messages_that_never_come(rule: str) -> None:
    case = CASES["batchnorm"]
    net = build(case, rule)
    generator = torch.Generator().manual_seed(0)
    train(net, "in_process", case, 8, update_prob=0.3, generator=generator)
    assert all(v.isfinite().all() for v in net.state_dict().values())


@every_rule
def test_credit_is_detached_and_of_the_messages_shape(rule: str) -> None:
    case = CASES["conv"]
    net = build(case, rule)
    x, y = case.batch()
    h = net.model[0](x)  # type: ignore[index,operator]
    made = net.interfaces["0"].rule.credit(h, about(y))
    if made.delta is not None:
        assert made.delta.shape == h.shape
        assert made.delta.dtype == h.dtype
        assert not made.delta.requires_grad
        if net.interfaces["0"].rule.listens:  # the others' credit is no prediction
            assert made.delta.abs().max() == 0  # until something has been learned from a message


@every_rule
def test_observing_again_gives_the_loss_of_what_was_pending(rule: str) -> None:
    case = CASES["linear"]
    net = build(case, rule)
    train(net, "in_process", case, 5)
    bound = net.interfaces["3"].rule
    x, y = case.batch()
    h = net.model[:4](x).detach()  # type: ignore[index,operator]
    info, message = about(y), sg.core.Message(torch.randn_like(h))
    pending = copy.deepcopy(bound).credit(h, info).pending
    now, later = bound.observe(h, info, message, pending), copy.deepcopy(bound).observe(h, info, message)
    if any(True for _ in bound.parameters()) and bound.listens:
        assert now is not None
        assert later is not None
        assert torch.allclose(now, later)
    else:
        assert now is None


@every_rule
def test_observe_grad_is_the_gradient_of_observe(rule: str) -> None:
    case = CASES["linear"]
    bound = build(case, rule).interfaces["1"].rule
    h = torch.randn(4, 7, dtype=torch.float64)
    info = about(torch.tensor([0, 1, 2, 3]))
    message = sg.core.Message(torch.randn_like(h), torch.rand(4, dtype=torch.float64))
    pending = tuple(torch.randn_like(p).requires_grad_() for p in bound.credit(h, info).pending)
    grads = bound.observe_grad(h, info, message, pending) if pending else None
    if grads is None:
        pytest.skip("this rule offers no closed form, which is its right")
    loss = lambda *p: bound.observe(h, info, message, p)  # noqa: E731
    assert torch.autograd.gradcheck(loss, pending)
    value = loss(*pending)
    assert value is not None
    for ours, theirs in zip(grads, torch.autograd.grad(value, pending, allow_unused=True), strict=True):
        assert (ours is None) == (theirs is None)
        if ours is not None and theirs is not None:
            assert torch.allclose(ours, theirs)


@every_rule
@every_engine
def test_learning_goes_on(rule: str, engine: str) -> None:
    """A separable toy is learned by every rule, by the last module alone if need be."""
    torch.manual_seed(0)
    case = CASES["batchnorm"]
    x = torch.randn(64, 6, dtype=torch.float64)
    y = x[:, :CLASSES].argmax(1)
    net = build(case, rule)
    trainer = ENGINES[engine](net, F.cross_entropy, adam)
    for _ in range(60):
        trainer.step(x, y, ids=torch.arange(64))
    assert (net.eval()(x).argmax(1) == y).double().mean() > 0.35  # chance is 0.2
