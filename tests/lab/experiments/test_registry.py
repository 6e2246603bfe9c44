"""Experiments by name, their tiers, and what of them is run."""

from __future__ import annotations

from dataclasses import replace

import pytest

from synthgrad.core import ConfigError
from synthgrad.lab.experiments.registry import EXPERIMENTS, Choice, experiment_named
from synthgrad.lab.experiments.train import blank
from synthgrad.lab.records import identity

CASES = [(e.name, tier) for e in EXPERIMENTS.values() for tier in e.tiers]


@pytest.mark.parametrize(("name", "tier"), CASES)
def test_runs_are_of_the_experiment_and_differ(name: str, tier: str) -> None:
    made = experiment_named(name, tier).runs(tier, (0, 1), "cpu", None)
    assert {(c.experiment, c.tier) for c in made} == {(name, tier)}
    assert len({identity(blank(c, 1)) for c in made}) == len(made)
    assert [c.seed for c in made] == sorted(c.seed for c in made) or name.endswith("_search")


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_smoke_needs_no_file(name: str) -> None:
    made = experiment_named(name, "smoke").runs("smoke", (0,), "cpu", None)
    assert {c.cell.data for c in made} <= {"mnist-10k", "copy", "repeat_copy", "shakespeare-50k"}


def test_no_such_tier_or_experiment() -> None:
    with pytest.raises(ConfigError, match="has no tier 'full'; accepted: smoke, quick"):
        experiment_named("dni_search", "full")
    with pytest.raises(ConfigError, match="experiment 'magic' is unknown; accepted: compare"):
        experiment_named("magic", "quick")


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        (Choice(data=("cifar10",)), 6 * 4),
        (Choice(arch=("cnn",)), 4 * 4),
        (Choice(layers=(5, 6)), 4 * 4),
        (Choice(methods=("cdni", "stale")), 12 * 2),
        (Choice(data=("mnist",), arch=("fcn",), layers=(3,), methods=("dni",)), 1),
        (Choice(), 12 * 4),
    ],
)
def test_a_choice_keeps_the_cells_that_it_names(choice: Choice, expected: int) -> None:
    table = experiment_named("table1", "quick")
    kept = table.runs("quick", (0,), "cpu", None, choice)
    assert len(kept) == expected
    for run in kept:
        assert choice.data is None or run.cell.data in choice.data
        assert choice.arch is None or run.cell.arch in choice.arch
        assert choice.layers is None or run.cell.layers in choice.layers
        assert run.method in (choice.methods or table.methods or ())


def test_what_is_kept_is_the_same_run() -> None:
    table = experiment_named("table1", "quick")
    whole = table.runs("quick", (0,), "cpu", None)
    assert set(table.runs("quick", (0,), "cpu", None, Choice(layers=(4,)))) < set(whole)


def test_another_precision() -> None:
    table = experiment_named("table1", "quick")
    whole = table.runs("quick", (0,), "cpu", None)
    other = table.runs("quick", (0,), "cpu", None, Choice(precision="float32"))
    assert other == [replace(run, precision="float32") for run in whole]
    with pytest.raises(ConfigError, match="precision 'half' is unknown"):
        table.runs("quick", (0,), "cpu", None, Choice(precision="half"))


@pytest.mark.parametrize(
    ("choice", "words"),
    [
        (
            Choice(data=("imagenet",)),
            "--data imagenet: experiment 'table1', tier 'quick', has mnist, cifar10;",
        ),
        (Choice(arch=("rnn", "fcn")), "--arch rnn: .* has fcn, cnn;"),
        (Choice(layers=(3, 7, 8)), "--layers 7,8: .* has 3, 4, 5, 6;"),
        (Choice(methods=("magic",)), "--methods magic: .* has backprop, no_bprop, dni, cdni, stale"),
        (Choice(arch=("cnn",), layers=(6,)), "nothing is left .* it has mnist fcn 3 layers; .*cifar10 cnn 4"),
    ],
)
def test_what_the_experiment_has_not(choice: Choice, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        experiment_named("table1", "quick").runs("quick", (0,), "cpu", None, choice)
