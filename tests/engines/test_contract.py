"""What every rule must do in every engine. A method in the registry is enrolled by being there."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional as F

import synthgrad as sg
from synthgrad import rules
from synthgrad.core import ConfigError, Decoupled
from synthgrad.engines import InProcess, Locked
from synthgrad.testing import check_rule
from tests.engines.rule_registry import RULES, exported
from tests.networks import CASES, CLASSES, Case

ENGINES: dict[str, Any] = {"in_process": InProcess, "plain": Locked}
every_rule = pytest.mark.parametrize("rule", RULES)
every_engine = pytest.mark.parametrize("engine", ENGINES)
#: Clauses that are tried with other layers, too; in all engines messages are alike.
ON_OTHERS = ("credit", "observation", "units", "state dict", "determinism", "resume", "late messages")


def adam(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, 1e-2)


def build(case: Case, rule: str, dtype: torch.dtype = torch.float64) -> Decoupled:
    torch.manual_seed(2)
    return sg.decouple(case.model(dtype), case.at, RULES[rule](), case.batch(dtype=dtype)[0])


def about(y: torch.Tensor) -> sg.core.Info:
    """Everything that any rule may want to know of a batch."""
    return sg.core.Info(context=y, ids=torch.arange(len(y)), step=0)


def test_every_exported_rule_is_enrolled() -> None:
    enrolled = {type(make()) for make in RULES.values()} | {rules.Oracle}  # the oracle has its own tests
    missing = exported() - enrolled
    assert not missing, f"enter {missing} into RULES of rule_registry.py"


@every_rule
def test_the_contract_of_users_own_rules_holds(rule: str) -> None:
    check_rule(RULES[rule], classes=CLASSES)


@pytest.mark.slow(
    reason="every rule in every engine on two more networks; the contract itself is in the short suite"
)
@every_rule
def test_it_holds_with_normalised_and_with_convolutional_layers(rule: str) -> None:
    for case in (CASES["batchnorm"], CASES["conv"]):
        check_rule(RULES[rule], model=case.model(), at=case.at, batches=case.batches(8), clauses=ON_OTHERS)


@every_rule
def test_the_first_credit_of_a_rule_that_listens_is_zero(rule: str) -> None:
    case = CASES["conv"]
    net = build(case, rule)
    x, y = case.batch()
    h = net.model[0](x)  # type: ignore[index,operator]
    made = net.interfaces["0"].rule.credit(h, about(y))
    # The credit of others, and of rules with a loss of their own, is no prediction.
    if made.delta is not None and made.loss is None and net.interfaces["0"].rule.listens:
        assert made.delta.abs().max() == 0  # until something has been learned from a message


@every_rule
@every_engine
def test_learning_goes_on(rule: str, engine: str) -> None:
    """A separable toy is learned by every rule, by the last module alone if need be."""
    torch.manual_seed(0)
    case = CASES["batchnorm"]
    x = torch.randn(64, 6, dtype=torch.float64)
    y = x[:, :CLASSES].argmax(1)
    net = build(case, rule)
    if engine == "plain" and any(i.rule.sends_ahead or i.rule.corrects for i in net.interfaces.values()):
        with pytest.raises(ConfigError, match=r"use synthgrad\.engines\.InProcess"):
            ENGINES[engine](net, F.cross_entropy, adam).step(x, y)
        return
    trainer = ENGINES[engine](net, F.cross_entropy, adam)
    for _ in range(60):
        trainer.step(x, y, ids=torch.arange(64))
    assert (net.eval()(x).argmax(1) == y).double().mean() > 0.35  # chance is 0.2
