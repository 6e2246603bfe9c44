"""The reference test of every engine: with the true gradient as rule it equals backpropagation."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import synthgrad as sg
from synthgrad.rules import record_messages
from tests.networks import CASES, Case

STEPS = 6
ENGINES: dict[str, Any] = {"in_process": sg.engines.InProcess, "plain": sg.engines.Locked}


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, 0.1, momentum=0.9)


def assert_same(net: nn.Module, reference: nn.Module, atol: float = 1e-12) -> None:
    theirs = dict(reference.state_dict())
    for name, value in net.state_dict().items():
        assert torch.allclose(value, theirs[name], rtol=0, atol=atol), f"'{name}' differs"


def run_backprop(
    case: Case, optimizer: Callable[[Any], torch.optim.Optimizer], reduction: str = "mean"
) -> tuple[nn.Module, Any]:
    reference = case.model()
    made = optimizer(reference.parameters())

    def step(model: nn.Module, x: Tensor, y: Tensor) -> None:
        made.zero_grad()
        loss = case.criterion(model(x), y)
        (loss if reduction == "mean" else loss * len(y)).backward()
        made.step()

    return reference, record_messages(reference, case.at, step, case.batches(STEPS), reduction)  # type: ignore[arg-type]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_equals_backprop_per_parameter(case: Case, engine: str) -> None:
    reference, recording = run_backprop(case, sgd)
    net = sg.decouple(case.model(), case.at, sg.Oracle(recording), case.batch()[0])
    trainer = ENGINES[engine](net, case.criterion, sgd)
    for x, y in case.batches(STEPS):
        trainer.step(x, y)
    assert_same(net.model, reference)
    assert_same(sg.recouple(net), reference)


@pytest.mark.parametrize("engine", ENGINES)
def test_equals_backprop_with_a_summed_criterion(engine: str) -> None:
    case = CASES["linear"]
    slow = lambda p: torch.optim.SGD(p, 0.01)  # noqa: E731
    reference, recording = run_backprop(case, slow, "sum")
    net = sg.decouple(case.model(), case.at, sg.Oracle(recording), case.batch()[0], reduction="sum")
    trainer = ENGINES[engine](net, lambda o, y: case.criterion(o, y) * len(y), slow)
    for x, y in case.batches(STEPS):
        trainer.step(x, y)
    assert_same(net.model, reference)


@pytest.mark.parametrize("engine", ENGINES)
def test_equals_backprop_under_adam(engine: str) -> None:
    case = CASES["linear"]
    adam = lambda p: torch.optim.Adam(p, 1e-2)  # noqa: E731
    reference, recording = run_backprop(case, adam)
    net = sg.decouple(case.model(), case.at, sg.Oracle(recording), case.batch()[0])
    trainer = ENGINES[engine](net, case.criterion, adam)
    for x, y in case.batches(STEPS):
        trainer.step(x, y)
    assert_same(net.model, reference, atol=1e-9)  # Adam divides rounding errors by tiny second moments


def test_a_wrong_gradient_is_noticed() -> None:
    """The reference test can fail: one message changed by a part in a million shows."""
    case = CASES["linear"]
    reference, recording = run_backprop(case, sgd)
    changed = copy.deepcopy(recording)
    changed.messages["1", 0] *= 1 + 1e-6
    net = sg.decouple(case.model(), case.at, sg.Oracle(changed), case.batch()[0])
    trainer = sg.engines.InProcess(net, case.criterion, sgd)
    for x, y in case.batches(STEPS):
        trainer.step(x, y)
    with pytest.raises(AssertionError, match="differs"):
        assert_same(net.model, reference)


def test_the_message_that_comes_back_is_the_recorded_one() -> None:
    """A chain with exact credit sends exact messages: bootstrapped targets are true gradients."""
    case = CASES["batchnorm"]
    _, recording = run_backprop(case, sgd)

    class Listening(sg.Oracle):
        listens = True

        def __deepcopy__(self, memo: dict[int, Any]) -> Listening:
            return Listening(self._recording)

        def observe(self, h: Tensor, info: Any, message: Any, pending: Any = ()) -> None:
            expected = self._recording.messages[self.name, info.step]
            assert torch.allclose(message.gradient, expected, rtol=1e-9, atol=1e-12)
            seen.append(self.name)

    seen: list[str] = []
    net = sg.decouple(case.model(), case.at, Listening(recording), case.batch()[0])
    trainer = sg.engines.InProcess(net, case.criterion, sgd)
    for x, y in case.batches(STEPS):
        trainer.step(x, y)
    assert seen == ["0", "1", "2"] * STEPS
