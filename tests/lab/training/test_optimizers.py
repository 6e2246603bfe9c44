"""Optimizers by name: which parameters each gets, with which constants, and how the learning rate goes."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import Muon, Optimizer

import synthgrad as sg
from synthgrad.core import ConfigError
from synthgrad.lab.recipes import comparison, experiment_named
from synthgrad.lab.tasks import fully_connected
from synthgrad.lab.tasks.gpt import gpt
from synthgrad.lab.training.optimizers import optimizer_factory
from synthgrad.lab.training.rehearsal import rehearse_all
from synthgrad.lab.training.settings import OPTIMIZERS, Schedule
from synthgrad.optim import ErrorFeedback
from tests.lab.runs import changed


def made(name: str, net: nn.Module, *, error_feedback: bool = False) -> list[Optimizer]:
    """Return the optimizers of a network's parameters."""
    factory = optimizer_factory(name, 0.1, net, error_feedback=error_feedback)
    optimizers: Any = factory(list(net.parameters()))
    return [o for o in optimizers if o is not None]


def names_in(optimizer: Optimizer, net: nn.Module, **settings: float) -> set[str]:
    """Return the names of an optimizer's parameters, those of groups with some settings."""
    names = {id(p): name for name, p in net.named_parameters()}
    groups = [g for g in optimizer.param_groups if all(g[k] == v for k, v in settings.items())]
    return {names[id(p)] for group in groups for p in group["params"]}


def decoupled(rule: sg.core.Rule) -> nn.Module:
    """Return a GPT of two blocks with a cut between them."""
    return sg.decouple(
        gpt(11, width=16, blocks=2, heads=2, context=8), ["block1"], rule, torch.ones(2, 8).long()
    )


MATRICES = ("attention.query_key_value", "attention.output", "layers.0", "layers.2")


def test_muon_has_the_matrices_of_blocks_private_ones_too() -> None:
    net = decoupled(sg.LocalLoss(11, sg.rules.heads.token_head(1)))
    muon, rest = made("muon", net)
    assert isinstance(muon, Muon)
    private = {n for n in names_in(muon, net) if n.startswith("rules.")}
    assert names_in(muon, net) - private == {
        f"model.{block}.{name}.weight" for block in ("block1", "block2") for name in MATRICES
    }
    assert {".".join(n.split(".")[-3:-1]) for n in private} == set(MATRICES)
    assert len(private) == len(MATRICES)
    assert names_in(rest, net) == {n for n, _ in net.named_parameters()} - names_in(muon, net)
    assert {"model.embedding.weight", "model.output.scores.weight", "model.block1.layers.0.bias"} <= names_in(
        rest, net
    )


def test_muon_has_no_matrix_that_makes_a_gradient_or_scores() -> None:
    linear = decoupled(sg.SyntheticGradient(context=11))
    assert not any(n.startswith("rules.") for n in names_in(made("muon", linear)[0], linear))
    hidden = decoupled(sg.SyntheticGradient((6,), context=11, norm=False))
    (name,) = (n for n in names_in(made("muon", hidden)[0], hidden) if n.startswith("rules."))
    assert hidden.get_parameter(name).shape[0] == 6
    dense = fully_connected((1, 28, 28), 10, 3, 8)
    assert [p.shape for p in made("muon", dense)[0].param_groups[0]["params"]] == [(8, 784), (8, 8)]


def test_muon_steps_as_far_as_adamw() -> None:
    """The root mean square of an update of AdamW is about a fifth of the rate."""
    net = gpt(11, width=64, blocks=1, heads=2, context=8)
    weight = net.get_parameter("block1.layers.0.weight")
    before = weight.detach().clone()
    (muon, _) = made("muon", net)
    weight.grad = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
    muon.step()
    moved = (weight.detach() - before * (1 - 0.1 * 0.1)).square().mean().sqrt().item()
    assert moved == pytest.approx(0.2 * 0.1, rel=0.3)


@pytest.mark.parametrize("name", ["adamw", "nadam", "muon"])
def test_weight_decay_is_for_matrices(name: str) -> None:
    net = gpt(11, width=16, blocks=1, heads=2, context=8)
    optimizers = made(name, net)
    decayed = set[str]().union(*(names_in(o, net, weight_decay=0.1) for o in optimizers))
    kept = set[str]().union(*(names_in(o, net, weight_decay=0.0) for o in optimizers))
    assert decayed == {n for n, p in net.named_parameters() if p.ndim == 2}
    assert decayed | kept == {n for n, _ in net.named_parameters()}
    betas = {tuple(o.defaults["betas"]) for o in optimizers if not isinstance(o, Muon)}
    assert betas == {(0.99, 0.999) if name == "nadam" else (0.9, 0.95)}
    assert name != "nadam" or optimizers[0].defaults["decoupled_weight_decay"]


def test_adam_is_what_it_was() -> None:
    (adam,) = made("adam", nn.Linear(2, 2))
    assert (type(adam), adam.defaults["betas"], adam.defaults["weight_decay"]) == (
        *(torch.optim.Adam, (0.9, 0.999), 0),
    )


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_error_feedback_is_around_each(name: str) -> None:
    plain, wrapped = (
        made(name, gpt(11, width=16, blocks=1, heads=2, context=8), error_feedback=on) for on in (False, True)
    )
    assert [type(o.optimizer) for o in wrapped if isinstance(o, ErrorFeedback)] == [type(o) for o in plain]


def test_a_module_without_hidden_matrices_has_adamw_alone() -> None:
    net = gpt(11, width=16, blocks=1, heads=2, context=8)
    found: Any = optimizer_factory("muon", 0.1, net)([net.get_parameter("output.scores.weight")])
    assert [type(o) for o in found] == [type(None), torch.optim.AdamW]
    found = optimizer_factory("muon", 0.1, net)([net.get_parameter("block1.layers.0.weight")])
    assert [type(o) for o in found] == [Muon, type(None)]


# The learning rate


def test_it_rises_and_falls_along_a_cosine() -> None:
    schedule = Schedule(104, lr_warm_up=4, cosine=True)
    assert [schedule.lr_factor(t) for t in range(4)] == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert schedule.lr_factor(4) == 1
    assert schedule.lr_factor(54) == pytest.approx(0.55)
    assert schedule.lr_factor(104) == pytest.approx(0.1)
    assert schedule.lr_factor(29) == pytest.approx(0.1 + 0.9 * (1 + math.cos(math.pi / 4)) / 2)


def test_it_rises_before_milestones_too() -> None:
    schedule = Schedule(10, lr_warm_up=1, milestones=(0.5,))
    assert [schedule.lr_factor(t) for t in (0, 1, 4, 5)] == pytest.approx([0.5, 1, 1, 0.1])


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"optimizer": "sgd"}, "optimizer 'sgd' is unknown; accepted: adam, adamw, nadam, muon"),
        ({"accumulate": 0}, "accumulate 0: expected at least 1"),
        ({"accumulate": 11}, "updates of 11 batches: expected at most 10"),
        ({"versions": 3}, "versions 3: expected 2"),
        ({"lr_warm_up": 10}, "warm-up of 10 batches: expected 0 to 9"),
        ({"lr_warm_up": -1}, "warm-up of -1 batches"),
    ],
)
def test_schedules_that_cannot_be(wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Schedule(10, **wrong)


def test_tasks_without_a_choice_of_optimizer_say_so() -> None:
    run = experiment_named("charlm").runs("smoke")[0]
    for given in ({"optimizer": "muon"}, {"accumulate": 2}, {"error_feedback": True}):
        with pytest.raises(ConfigError, match="is trained by Adam with an update for each batch"):
            changed(run, **given)
    assert changed(run, lr_warm_up=3, cosine=True).schedule.cosine


def test_a_comparison_with_error_feedback_can_begin() -> None:
    """Its cost is estimated beside backpropagation, which has no late gradient."""
    (run,) = comparison("smoke", None, ["delayed"], error_feedback=True, versions=1, width=8, layers=3)
    (rehearsed,) = rehearse_all([run])
    assert rehearsed.estimated_ratio is not None


def test_a_record_has_the_settings_that_are_not_as_ever() -> None:
    run = experiment_named("lag").runs("smoke")[0]
    assert run.config()["optimizer"] == "Adam"
    assert set(changed(run, optimizer="muon", cosine=True).config()) - set(run.config()) == {"cosine"}
    assert changed(run, optimizer="muon").config()["optimizer"] == "Muon"
