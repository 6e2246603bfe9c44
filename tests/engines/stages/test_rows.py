"""Messages for a share of a batch's rows."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from synthgrad import decouple
from synthgrad.core import Credit, Info, Message, Rule
from synthgrad.engines import Stages
from synthgrad.engines.stages.rows import chosen_rows
from tests.engines.stages import programs
from tests.engines.stages.places import InMemory, Place

STEPS = 6


class Recorder(Rule):
    """Gives no credit, and keeps what it observes."""

    def build(self, *args: Any) -> None:
        self.heard: list[tuple[int | None, Tensor, Tensor, Tensor, Tensor]] = []

    def credit(self, h: Tensor, info: Info) -> Credit:
        return Credit(torch.zeros_like(h))

    def observe(self, h: Tensor, info: Info, message: Message, pending: tuple[Tensor, ...] = ()) -> None:
        assert info.context is not None
        assert message.loss is not None
        self.heard.append((info.step, h, info.context, message.gradient, message.loss))


@pytest.mark.parametrize(("share", "count"), [(0.25, 3), (0.5, 5), (0.01, 1), (0.95, 10), (1.0, 10)])
def test_as_many_rows_as_are_asked_for_others_in_every_step(share: float, count: int) -> None:
    found = [chosen_rows(share, 10, step, seed=1) for step in range(40)]
    if count == 10:
        assert found == [None] * 40
        return
    kept = [rows.tolist() for rows in found if rows is not None]
    assert all(len(rows) == len(set(rows)) == count and rows == sorted(rows) for rows in kept)
    assert {row for rows in kept for row in rows} == set(range(10))
    assert kept == [
        rows.tolist() for step in range(40) if (rows := chosen_rows(share, 10, step, 1)) is not None
    ]
    other = [rows.tolist() for step in range(40) if (rows := chosen_rows(share, 10, step, 2)) is not None]
    assert other != kept


def listened(place: Place, observe_rows: float, window: int) -> Any:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(programs.INPUTS, 8), nn.Tanh(), nn.Linear(8, programs.CLASSES)).double()
    data = programs.batches(STEPS)
    net = decouple(model, ["1"], Recorder(), data[0][0])
    how: dict[str, Any] = {"window": window, "deterministic": True, "observe_rows": observe_rows, "seed": 3}
    with Stages(net, programs.per_example, programs.sgd, transport=place.transport, **how) as stages:
        for x, y in data:
            stages.step(x if place.rank == 0 else None, y)
        (interface,) = net.interfaces.values()
        assert isinstance(interface.rule, Recorder)
        return interface.rule.heard, stages.sent_bytes


@pytest.mark.parametrize("window", [0, 2])
def test_a_rule_hears_of_the_chosen_rows_what_it_would_hear_of_all(two: InMemory, window: int) -> None:
    (every, _), (_, sent) = two.run(listened, 1.0, window)
    (some, _), (_, sent_less) = two.run(listened, 0.4, window)
    assert [step for step, *_ in some] == [step for step, *_ in every] == list(range(STEPS - window))
    for whole, part in zip(every, some, strict=True):
        rows = chosen_rows(0.4, programs.BATCH, part[0] or 0, seed=3)
        assert rows is not None
        for ours, theirs in zip(part[1:], whole[1:], strict=True):
            assert isinstance(ours, Tensor)
            assert isinstance(theirs, Tensor)
            assert torch.equal(ours, theirs[rows])
    rows_sent = programs.BATCH - math.ceil(0.4 * programs.BATCH)
    assert sent - sent_less == STEPS * rows_sent * (8 + 1) * 8  # features and loss, float64


@pytest.mark.parametrize("rule", ["cdni", "dni", "sobolev"])
def test_rules_learn_from_a_share(two: InMemory, rule: str) -> None:
    options = {"window": 1, "deterministic": True}
    found = two.run(_trained, rule, options | {"observe_rows": 0.5})[0]["weights"]
    none = two.run(_trained, rule, options | {"observe_prob": 0.0})[0]["weights"]
    every = two.run(_trained, rule, options)[0]["weights"]
    own = [name for name in found if name.startswith("rules.")]
    assert own
    for other in (none, every):
        assert any(not torch.equal(found[name], other[name]) for name in own)
    whole = two.run(_trained, rule, options | {"observe_rows": 0.99})[0]["weights"]
    for name, value in every.items():
        torch.testing.assert_close(whole[name], value, rtol=0, atol=0, msg=name)


def _trained(place: Place, rule: str, options: dict[str, Any]) -> dict[str, Any]:
    return programs.trained(place, 2, rule, 10, **options)


@pytest.mark.parametrize(
    ("rule", "share", "error"),
    [
        ("cdni", 0.0, "observe_rows=0.0: expected a share of the rows of a batch, above 0 up to 1"),
        ("cdni", 1.5, "observe_rows=1.5: expected a share"),
        ("true", 0.5, "observe_rows=0.5: the module below interface '0' waits for its message"),
    ],
)
def test_what_cannot_be_is_refused(two: InMemory, rule: str, share: float, error: str) -> None:
    for outcome in two.outcomes(_refused, rule, share):
        assert error in (outcome.error or "")


def _refused(place: Place, rule: str, share: float) -> None:
    programs.trained(place, 2, rule, 1, window=1, observe_rows=share)
