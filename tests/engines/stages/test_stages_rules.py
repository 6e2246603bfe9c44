"""Every rule at the end of a stage against the same thing written out by hand."""

from __future__ import annotations

import copy
import traceback
from typing import Any

import pytest
import torch
from torch import Tensor

from synthgrad.core import Decoupled
from synthgrad.engines import Lag, Stages
from synthgrad.rules import HandOver
from tests.engines.by_hand import ByHand, assert_same, batches, chain, losses, run, sgd
from tests.engines.rule_registry import TAKEN_EVERYWHERE as RULES
from tests.engines.stages.places import InMemory, Place

STEPS = 10
WINDOWS = [0, 1, 3]

#: A rule that hands over, trained with momentum too.
AT_ONCE = "hand_over-stale"

#: By rule: the weights that came out, or the error.
Found = dict[str, dict[str, Tensor] | str]


def _trained(place: Place, window: int) -> Found:
    """Train with every rule, one after the other: a call to the processes for each would take longer."""
    found: Found = {}
    for name, make in RULES.items():
        try:
            found[name] = _weights(chain(make(), modules=2), place, window, _optimizer(name))
        except Exception:
            found[name] = traceback.format_exc()
    found[f"{AT_ONCE} with momentum"] = _weights(chain(RULES[AT_ONCE](), modules=2), place, window, sgd)
    return found


def _optimizer(rule: str) -> Any:
    """Return one without momentum for a rule that waits at first; see the test at the end."""
    return (lambda p: torch.optim.SGD(p, 0.1)) if isinstance(RULES[rule](), HandOver) else sgd


def _weights(net: Decoupled, place: Place, window: int, optimizer: Any) -> dict[str, Tensor]:
    with Stages(
        net,
        losses,
        optimizer,
        window=window,
        deterministic=True,
        accumulate=1,
        timeout_s=20,
        transport=place.transport,
    ) as stages:
        for x, y, ids in batches(STEPS):
            stages.step(x if place.rank == 0 else None, y, ids=ids)
        stages.gather()
    return {key: value.clone() for key, value in net.state_dict().items()}


@pytest.fixture(scope="module", params=WINDOWS, ids=lambda w: f"window {w}")
def trained(two: InMemory, request: pytest.FixtureRequest) -> tuple[int, list[Found]]:
    return request.param, two.run(_trained, request.param)


@pytest.mark.parametrize("rule", RULES)
def test_stages_learn_what_the_loop_by_hand_learns(rule: str, trained: tuple[int, list[Found]]) -> None:
    window, found = trained
    net = chain(RULES[rule](), modules=2)
    start: Any = copy.deepcopy(net.state_dict())
    run(ByHand(net, [Lag(0, window)], optimizer=_optimizer(rule)), STEPS)
    expected = net.state_dict()
    for outcome in found:
        weights = outcome[rule]
        assert isinstance(weights, dict), weights
        assert_same(weights, expected)
    learned = [key for key, value in expected.items() if not torch.equal(value, start[key])]
    assert any(key.startswith("model.0") for key in learned) == (rule != "no_bprop")
    assert any(key.startswith("rules.") for key in learned) == any(key.startswith("rules.") for key in start)


def test_a_hand_over_takes_the_steps_of_the_loop_by_hand(trained: tuple[int, list[Found]]) -> None:
    window, found = trained
    net = chain(RULES[AT_ONCE](), modules=2)
    run(ByHand(net, [Lag(0, window)]), STEPS)
    for outcome in found:
        weights = outcome[f"{AT_ONCE} with momentum"]
        assert isinstance(weights, dict), weights
        assert_same(weights, net.state_dict())
