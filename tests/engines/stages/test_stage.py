"""A stage by itself, between links of a test: what it learns from answers, and what it answers."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

import synthgrad as sg
from synthgrad.core import Decoupled, Info, Instruments, Message, Rule
from synthgrad.engines.parts import split_network
from synthgrad.engines.stages.links import Activation, Answer
from synthgrad.engines.stages.stage import Stage
from synthgrad.engines.stages.window import Window
from synthgrad.rules import HandOver, Sobolev
from tests.engines.by_hand import B, batches, chain
from tests.networks import CLASSES


@dataclass
class Above:
    """A link upwards: in each step of the stage come the answers that the test says.

    Attributes:
        come: answers by step.
        busy_us: how long the stage above says that it takes.
        sent: what was sent, by step.
    """

    come: Mapping[int, Sequence[Answer]]
    busy_us: int = 0
    sent: dict[int, Tensor] = field(default_factory=dict[int, Tensor])

    def send(self, kind: Any, step: int, h: Tensor, *rest: Any, **more: Any) -> None:
        self.sent[step] = h

    def receive_answers(
        self, until: int, upto: int, *, deterministic: bool, on_step_time: Callable[[int], None]
    ) -> list[Answer]:
        on_step_time(self.busy_us)
        return list(self.come.get(upto, ()))


@dataclass
class Below:
    """A link downwards: every batch comes in time, and all messages are wanted.

    Attributes:
        answers: batch, gradient and busy time of what was answered, in order.
    """

    answers: list[tuple[int, Tensor | None, float]] = field(
        default_factory=list[tuple[int, Tensor | None, float]]
    )

    def receive(self, kind: Any, step: int) -> Activation:
        generator = torch.Generator().manual_seed(step)
        return Activation(torch.randn(B, 7, generator=generator, dtype=torch.float64), None, [], 0)

    def draw(self) -> bool:
        return True

    def answer(
        self, step: int, gradient: Tensor | None = None, loss: Tensor | None = None, busy_s: float = 0.0
    ) -> None:
        self.answers.append((step, None if gradient is None else gradient.clone(), busy_s))


def stage_of(net: Decoupled, position: int, above: Above, below: Below | None, window: Window) -> Stage:
    links: Any = {"above": above, "below": below}
    rules = [i.rule for i in net.interfaces.values()]
    return Stage(
        split_network(net)[position], net.units, None, rules[position],
        **links, window=window, deterministic=False, instruments=Instruments(), name=str(position),
    )  # fmt: skip


def answer(step: int, *, header: bool = False) -> Answer:
    generator = torch.Generator().manual_seed(100 + step)
    gradient = torch.randn(B, 7, generator=generator, dtype=torch.float64)
    loss = torch.rand(B, generator=generator, dtype=torch.float64)
    return Answer(step, None, None) if header else Answer(step, gradient, loss)


RULES: dict[str, Callable[[], Rule]] = {
    "linear": lambda: sg.SyntheticGradient(context=CLASSES),
    "hidden": lambda: sg.SyntheticGradient((6,), norm=False),
    "critic": lambda: Sobolev(CLASSES, (6,), norm=False),
}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(
    "come",
    [
        [answer(3)],  # in time: the prediction is used again
        [answer(1)],  # late: predicted anew
        [answer(0), answer(1)],
        [answer(1), answer(2), answer(3)],  # late ones and one in time
        [answer(0), answer(1, header=True), answer(2), answer(3)],  # one brings nothing to learn from
        [answer(0, header=True), answer(1, header=True), answer(2)],
    ],
    ids=["in time", "late", "two late", "both", "a header between", "one after headers"],
)
def test_a_rule_learns_the_mean_of_the_answers_that_have_come(rule: str, come: list[Answer]) -> None:
    net = chain(RULES[rule](), modules=2)
    above = Above({3: come})
    stage = stage_of(net, 0, above, None, Window(3))
    data = batches(4)
    for t, (x, y, ids) in enumerate(data):
        stage.run(t, ((x,), {}), y, ids=ids)
    ours = net.interfaces["0"].rule
    expected = copy.deepcopy(ours)
    expected.zero_grad()
    found = [
        expected.observe(above.sent[a.step], Info(data[a.step][1]), Message(a.gradient, a.loss))
        for a in come
        if a.gradient is not None
    ]
    torch.stack([loss for loss in found if loss is not None]).mean().backward()
    for (name, p), q in zip(ours.named_parameters(), expected.parameters(), strict=True):
        assert p.grad is not None, name
        assert q.grad is not None, name
        assert q.grad.abs().max() > 0, name
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-10, atol=1e-12, msg=name)


def test_the_window_hears_how_long_the_stage_above_takes() -> None:
    window = Window(None, 0.1)
    window.record_step(0.002)
    stage = stage_of(chain(sg.SyntheticGradient(), modules=2), 0, Above({}, busy_us=26_000), None, window)
    assert window.size == 52
    x, y, _ = batches(1)[0]
    stage.run(0, ((x,), {}), y)
    assert window.size == 6


def test_the_stage_below_hears_how_long_this_one_takes() -> None:
    window, below = Window(2), Below()
    window.record_step(0.003)
    stage = stage_of(chain(sg.SyntheticGradient(), modules=3), 1, Above({}), below, window)
    _, y, _ = batches(1)[0]
    stage.run(0, None, y)
    assert [(step, busy_s) for step, _, busy_s in below.answers] == [(0, 0.003)]


def test_answers_go_down_in_order_when_a_stage_waits_no_more() -> None:
    net = chain(HandOver(sg.SyntheticGradient(context=CLASSES), warm_up=2), modules=3)
    below = Below()
    come = {t: [answer(t - 1)] for t in range(1, 6)}
    stage = stage_of(net, 1, Above(come), below, Window(1))
    for t, (_, y, _) in enumerate(batches(6)):
        stage.run(t, None, y)
    answered = [step for step, *_ in below.answers]
    assert answered == sorted(answered)
