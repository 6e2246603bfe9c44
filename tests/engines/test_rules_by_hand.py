"""Every rule in every engine of one process against the same thing written out by hand, in float64.

A rule is enrolled by `rule_registry`: it learns what the loop by hand has it learn, or it is refused with the reason.
Processes are held to the same in ``stages/test_rules_by_hand.py``.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from synthgrad.core import ConfigError, Decoupled
from synthgrad.engines import InProcess, Lag, LayerParallel, Locked
from synthgrad.rules import HandOver, TrueGradient
from tests.engines.by_hand import ByHand, assert_same, batches, chain, losses, plain_loop, run, sgd
from tests.engines.rule_registry import ONE_BACKWARD as RULES
from tests.engines.rule_registry import TAKEN_EVERYWHERE

STEPS = 16
LAGS = {
    "none": (Lag(), Lag(), Lag()),
    "forward": (Lag(1), Lag(1), Lag(1)),
    "observe": (Lag(0, 3), Lag(0, 3), Lag(0, 3)),
    "mixed": (Lag(1, 2), Lag(0, 1), Lag(2, 1)),
}
every_rule = pytest.mark.parametrize("rule", RULES)
listening = [name for name, make in RULES.items() if make().listens and not make().waits]


def assert_learned(net: Decoupled, start: Decoupled) -> None:
    """Check that the comparison says something: what a rule has to learn with has changed."""
    before = start.state_dict()
    for name, interface in net.interfaces.items():
        own = [key for key in before if key.startswith(f"rules.{name}.")]
        changed = any(not torch.equal(before[key], net.state_dict()[key]) for key in own)
        assert changed or not own, f"the rule at '{name}' has learned nothing"
        waits_or_credits = type(interface.rule).__name__ != "NoBackprop"
        moved = not torch.equal(before[f"model.{name}.0.weight"], net.state_dict()[f"model.{name}.0.weight"])
        assert moved == waits_or_credits, f"module '{name}'"


@every_rule
@pytest.mark.parametrize("lags", LAGS)
def test_in_process_with_lags(rule: str, lags: str) -> None:
    net = chain(RULES[rule]())
    twin, start = copy.deepcopy(net), copy.deepcopy(net)
    run(InProcess(net, losses, sgd, lags=dict(zip(net.interfaces, LAGS[lags], strict=True))), STEPS)
    run(ByHand(twin, LAGS[lags]), STEPS)
    assert_same(net.state_dict(), twin.state_dict())
    assert_learned(net, start)


@pytest.mark.parametrize("rule", TAKEN_EVERYWHERE)
@pytest.mark.parametrize("observe", [0, 2])
def test_layer_parallel(rule: str, observe: int) -> None:
    net = chain(RULES[rule]())
    if RULES[rule]().waits:
        with pytest.raises(ConfigError, match="interface '0' .*wait.*InProcess") as refused:
            LayerParallel(net, losses, sgd, observe=observe)
        assert "\n" not in str(refused.value)
        return
    twin, start = copy.deepcopy(net), copy.deepcopy(net)
    run(LayerParallel(net, losses, sgd, observe=observe), STEPS)
    run(ByHand(twin, [Lag(1, observe)] * 3), STEPS)
    assert_same(net.state_dict(), twin.state_dict())
    assert_learned(net, start)


@every_rule
def test_the_plain_loop(rule: str) -> None:
    net = chain(RULES[rule]())
    twin, start = copy.deepcopy(net), copy.deepcopy(net)
    run(Locked(net, losses, sgd), STEPS)
    plain_loop(twin, STEPS)
    assert_same(net.state_dict(), twin.state_dict())
    assert_learned(net, start)


@pytest.mark.parametrize("rule", listening)
def test_below_a_module_that_waits_for_a_late_message(rule: str) -> None:
    """No lag is set at the lower interfaces, but the module above sends its message two steps after it has run."""
    net = chain({"0": RULES[rule](), "1": RULES[rule](), "2": TrueGradient()})
    twin, start = copy.deepcopy(net), copy.deepcopy(net)
    run(InProcess(net, losses, sgd, lags={"2": Lag(0, 2)}), STEPS)
    run(ByHand(twin, [Lag(), Lag(), Lag(0, 2)]), STEPS)
    assert_same(net.state_dict(), twin.state_dict())
    assert_learned(net, start)


PLAIN = [name for name in listening if not isinstance(RULES[name](), HandOver)]


@pytest.mark.parametrize("engine", [InProcess, Locked])
@pytest.mark.parametrize("rule", PLAIN)
def test_a_rule_that_is_frozen_has_learned_from_so_many_batches(rule: str, engine: Any) -> None:
    """Until then it is the rule itself, and from then on it stays."""
    net, twin = chain(HandOver(RULES[rule](), freeze_after=3)), chain(RULES[rule]())
    trainer, other = engine(net, losses, sgd), engine(twin, losses, sgd)
    for k, (x, y, ids) in enumerate(batches(5)):
        trainer.step(x, y, ids=ids)
        if k < 3:
            other.step(x, y, ids=ids)
        inner = {name: interface.rule.rule for name, interface in net.interfaces.items()}  # type: ignore[union-attr]
        for name, interface in twin.interfaces.items():
            learned = {
                n: t for n, t in inner[name].state_dict().items() if "running" not in n and "num" not in n
            }
            assert_same(learned, {n: t for n, t in interface.rule.state_dict().items() if n in learned})
