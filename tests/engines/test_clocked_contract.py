"""What every rule must do between networks of different rates: the same rules as in every other engine."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from synthgrad.core import ConfigError
from synthgrad.engines.clocked import Clocked, Edge, Node
from tests.engines.clocked_toys import WIDTH, Cell, criterion, edge
from tests.engines.rule_registry import ONE_BACKWARD as ALL
from tests.networks import CLASSES

B = 6
RULES = [name for name in ALL if not name.startswith("hand_over")]
every_rule = pytest.mark.parametrize("rule", RULES)


def build(rule: str, seed: int = 0, dtype: torch.dtype = torch.float64) -> Clocked:
    """Return A, at every step, and B, at every second, with edges both ways."""
    torch.manual_seed(seed)
    a, b = Cell("input", "B").to(dtype), Cell("A").to(dtype)
    back = Edge("B", "A", ALL[rule](), "message", initial=torch.zeros(WIDTH, dtype=dtype))
    return Clocked(
        [Node("A", a, 1, 2), Node("B", b, 2, 2)],
        [edge("A", "B", ALL[rule]()), back],
        {"A": criterion, "B": criterion},
        lambda p: torch.optim.Adam(p, 1e-2),
        example={"A": torch.zeros(B, WIDTH, dtype=dtype)},
    )


Batch = tuple[Tensor, Tensor]


def batches(number: int, dtype: torch.dtype = torch.float64) -> list[Batch]:
    generator = torch.Generator().manual_seed(3)
    return [
        (
            torch.randn(B, WIDTH, generator=generator, dtype=torch.float64).to(dtype),
            torch.randint(0, 3, (B,), generator=generator),
        )
        for _ in range(number)
    ]


def train(trainer: Clocked, data: Sequence[Batch], start: int = 0) -> None:
    for t, (x, y) in enumerate(data, start):
        targets = {"A": y} | ({"B": y} if (t + 1) % 4 == 0 else {})
        trainer.step({"A": x}, targets, context=y, ids=torch.arange(B))


@every_rule
def test_same_seed_same_weights(rule: str) -> None:
    one, two = build(rule), build(rule)
    train(one, batches(12))
    train(two, batches(12))
    for name, value in one.net.state_dict().items():
        assert torch.equal(value, two.net.state_dict()[name]), name


@every_rule
def test_resume_from_a_file_continues_as_if_nothing_had_happened(rule: str) -> None:
    data = batches(24)
    whole, half, fresh = build(rule), build(rule), build(rule, seed=1)
    train(whole, data)
    train(half, data[:12])
    buffer = io.BytesIO()
    torch.save({"net": half.net.state_dict(), "engine": half.state_dict()}, buffer)
    buffer.seek(0)
    state: Any = torch.load(buffer, weights_only=True)
    fresh.net.load_state_dict(state["net"])
    fresh.load_state_dict(state["engine"])
    train(fresh, data[12:], 12)
    for name, value in whole.net.state_dict().items():
        assert torch.equal(value, fresh.net.state_dict()[name]), name


@every_rule
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtype_of_the_modules_is_that_of_their_rules(rule: str, dtype: torch.dtype) -> None:
    trainer = build(rule, dtype=dtype)
    train(trainer, batches(8, dtype))
    found = trainer.net.state_dict().values()
    assert {v.dtype for v in found if v.is_floating_point()} == {dtype}
    assert all(v.isfinite().all() for v in found)


@every_rule
def test_rules_learn_if_they_have_anything_to_learn_with(rule: str) -> None:
    trainer = build(rule)
    before = {name: value.clone() for name, value in trainer.net.rules.state_dict().items()}
    train(trainer, batches(24))
    after = trainer.net.rules.state_dict()
    for name in ("A->B", "B->A"):
        own = [key for key in before if key.startswith(name)]
        assert not own or any(not torch.equal(before[key], after[key]) for key in own), name


@pytest.mark.parametrize("rule", [name for name in ALL if name.startswith("hand_over")])
def test_a_hand_over_is_refused_where_it_may_wait(rule: str) -> None:
    if not ALL[rule]().waits:
        train(build(rule), batches(8))
        return
    with pytest.raises(ConfigError, match="edge 'A->B': a HandOver decides with every message"):
        build(rule)


def test_the_rules_are_those_of_the_other_engines() -> None:
    assert {type(ALL[name]()).__name__ for name in RULES} >= {
        "LocalLoss",
        "NoBackprop",
        "Sobolev",
        "StaleGradient",
        "SyntheticGradient",
        "TrueGradient",
    }
    assert CLASSES >= 3  # labels of this test are classes of these rules
