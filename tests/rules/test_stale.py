"""Stale gradients: what is remembered of an example, and when it is too old."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import synthgrad as sg
from synthgrad.core import ConfigError, ContextError, CutError, Info, Message, Site
from synthgrad.rules import StaleGradient
from tests.networks import CASES


def bound(rule: StaleGradient, shape: tuple[int, ...] = (2,)) -> StaleGradient:
    return rule.bind(Site("cut", (3, *shape), torch.float64, torch.device("cpu"), nn.Identity()))


def info(*ids: int, step: int | None = 0) -> Info:
    return Info(ids=torch.tensor(ids), step=step)


def rows(*values: float) -> Tensor:
    return torch.tensor([[v, -v] for v in values], dtype=torch.float64)


def given(rule: StaleGradient, at: Info) -> Tensor:
    assert at.ids is not None
    delta = rule.credit(torch.zeros(len(at.ids), 2, dtype=torch.float64), at).delta
    assert delta is not None
    return delta


def test_credit_is_zero_until_an_example_has_had_a_message() -> None:
    rule = bound(StaleGradient(5))
    rule.observe(rows(0, 0), info(1, 3), Message(rows(7, 9)))
    assert torch.equal(given(rule, info(0, 1, 3)), rows(0, 7, 9))


def test_average_over_epochs_starts_at_the_first_message() -> None:
    rule = bound(StaleGradient(5, decay=0.75))
    for value in (8.0, 4.0, 0.0):
        rule.observe(rows(0), info(2), Message(rows(value)))
    # 8, then 0.75 · 8 + 0.25 · 4 = 7, then 0.75 · 7
    assert torch.allclose(given(rule, info(2)), rows(5.25))


def test_a_message_that_is_too_old_counts_as_none() -> None:
    rule = bound(StaleGradient(5, max_age=10))
    rule.observe(rows(0, 0), info(0, 1, step=4), Message(rows(1, 2)))
    rule.observe(rows(0), info(1, step=8), Message(rows(3)))
    assert torch.equal(given(rule, info(0, 1, step=14)), rows(1, 3))
    assert torch.equal(given(rule, info(0, 1, step=15)), rows(0, 3))


def test_messages_of_images_are_remembered_whole() -> None:
    rule = bound(StaleGradient(4, decay=0.5, max_age=3), (2, 3, 3))
    message = torch.randn(2, 2, 3, 3, dtype=torch.float64)
    rule.observe(message, info(3, 0), Message(message))
    delta = rule.credit(message, info(3, 0)).delta
    assert delta is not None
    assert torch.equal(delta, message)


@pytest.mark.parametrize("engine", [sg.engines.Locked, sg.engines.InProcess])
def test_every_epoch_learns_from_the_one_before(engine: Any) -> None:
    """With learning off for the network, the credit of the second epoch is the message of the first."""
    case = CASES["linear"]
    x, y = case.batch(6)
    net = sg.decouple(case.model(), ["3"], StaleGradient(6), x)
    trainer = engine(net, case.criterion, lambda parameters: torch.optim.SGD(parameters, 0.0))
    trainer.step(x[:3], y[:3], ids=torch.arange(3))
    trainer.step(x[3:], y[3:], ids=torch.arange(3, 6))
    leaf = net.model[:4](x).detach().requires_grad_()  # type: ignore[index]
    (case.criterion(net.model[4](leaf), y) * 6).backward()  # type: ignore[index, operator]
    memory = net.interfaces["3"].rule.memory  # type: ignore[union-attr]
    assert leaf.grad is not None
    assert torch.allclose(memory, leaf.grad)


@pytest.mark.parametrize(
    ("at", "words"),
    [
        (Info(), "remembers examples and got no ids"),
        (info(1, 2), r"ids of shape \(2,\)"),
        (Info(ids=torch.zeros(3)), "dtype torch.float32, expected"),
        (info(0, 1, 2, step=None), "max_age needs the number of the step"),
    ],
)
def test_what_does_not_fit_is_told(at: Info, words: str) -> None:
    with pytest.raises(ContextError, match=words):
        bound(StaleGradient(5, max_age=2)).check(torch.zeros(3, 2), at)


def test_an_unknown_example_is_told() -> None:
    with pytest.raises(ContextError, match="got ids from 1 to 5, expected 0 to 4"):
        given(bound(StaleGradient(5)), info(1, 5))


def test_arguments_out_of_range_are_told() -> None:
    for arguments in (
        {"num_examples": 0},
        {"num_examples": 3, "decay": 1.0},
        {"num_examples": 3, "max_age": 0},
    ):
        with pytest.raises(ConfigError):
            StaleGradient(**arguments)  # type: ignore[arg-type]
    with pytest.raises(CutError, match="has no features"):
        bound(StaleGradient(3), ())
