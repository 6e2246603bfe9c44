"""Experiments by name, their tiers, and the selection of their runs."""

from __future__ import annotations

import re
import sys
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path

import pytest

from synthgrad.core import ConfigError
from synthgrad.lab.recipes import Choice, experiment_named, experiments
from synthgrad.lab.records import identity
from synthgrad.lab.training.train import empty_record

CASES = [(e.name, tier) for e in experiments().values() for tier in e.tiers]


@pytest.mark.parametrize(("name", "tier"), CASES)
def test_runs_are_of_the_experiment_and_differ(name: str, tier: str) -> None:
    made = experiment_named(name).runs(tier, (0, 1))
    assert {(c.experiment, c.tier) for c in made} == {("compare" if name == "budgets" else name, tier)}
    assert len({identity(empty_record(c, 1)) for c in made}) == len(made)
    assert [c.seed for c in made] == sorted(c.seed for c in made) or name.endswith("_search")


@pytest.mark.parametrize("name", experiments())
def test_smoke_needs_no_file(name: str) -> None:
    made = experiment_named(name).runs("smoke")
    assert {c.payload.data for c in made} <= {"mnist-10k", "copy", "repeat_copy", "shakespeare-50k"}


def test_no_such_tier_or_experiment() -> None:
    with pytest.raises(ConfigError, match="has no tier 'full'; accepted: smoke, quick"):
        experiment_named("dni_search").runs("full")
    with pytest.raises(ConfigError, match="experiment 'magic' is unknown; accepted: budgets"):
        experiment_named("magic")


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
    table = experiment_named("table1")
    kept = table.runs("quick", choice=choice)
    assert len(kept) == expected
    for run in kept:
        assert choice.data is None or run.payload.data in choice.data
        assert choice.arch is None or run.payload.arch in choice.arch
        assert choice.layers is None or run.payload.layers in choice.layers
        assert run.method in (choice.methods or table.methods or ())


def test_what_is_kept_is_the_same_run() -> None:
    table = experiment_named("table1")
    whole = table.runs("quick")
    assert set(table.runs("quick", choice=Choice(layers=(4,)))) < set(whole)


def test_another_precision() -> None:
    table = experiment_named("table1")
    whole = table.runs("quick")
    other = table.runs("quick", choice=Choice(precision="float32"))
    assert other == [replace(run, precision="float32") for run in whole]
    with pytest.raises(ConfigError, match="precision 'half' is unknown"):
        table.runs("quick", choice=Choice(precision="half"))


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
        (
            Choice(arch=("cnn",), layers=(6,)),
            "has no run with all these values; it has .*mnist fcn 3 layers; .*cifar10 cnn 4",
        ),
    ],
)
def test_what_the_experiment_has_not(choice: Choice, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        experiment_named("table1").runs("quick", choice=choice)


def test_the_name_in_records_is_accepted_too() -> None:
    assert experiment_named("compare") is experiment_named("budgets")


_OWN = """
from synthgrad.lab.recipes import Experiment, Group
from synthgrad.lab.training.payloads import FeedForward
from synthgrad.lab.training.settings import Schedule

EXPERIMENT = Experiment(
    "two methods",
    {"smoke": [Group(FeedForward(data="mnist-10k"), Schedule(3, 32, eval_every=3), ("backprop", "cdni"))]},
)
"""


@pytest.fixture
def no_module_left() -> Generator[None]:
    """Remove the modules that an experiment's file adds, which would hide others of the same name."""
    before = set(sys.modules)
    yield
    for name in {"mine"} - before:
        sys.modules.pop(name, None)


@pytest.mark.usefixtures("no_module_left")
def test_an_experiment_in_a_file_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(_OWN)
    found = experiment_named(str(path))
    assert (found.name, [run.experiment for run in found.runs("smoke")]) == ("mine", ["mine"] * 2)


@pytest.mark.usefixtures("no_module_left")
@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "there is no such file; name one that declares an EXPERIMENT"),
        ("x = 1", "EXPERIMENT is a NoneType, expected an Experiment"),
        ("1 / 0", "ZeroDivisionError: division by zero; expected a module that can be imported"),
    ],
)
def test_a_file_that_declares_none(tmp_path: Path, text: str | None, words: str) -> None:
    path = tmp_path / "mine.py"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError, match=re.escape(words)):
        experiment_named(str(path))


def test_data_of_ones_own_takes_the_place_of_the_experiments() -> None:
    runs = experiment_named("lag").runs("quick", choice=Choice(data=("mine.npz",)))
    usual = experiment_named("lag").runs("quick")
    assert {run.payload.data for run in runs} == {"mine.npz"}
    assert [(r.method, r.rule, r.schedule) for r in runs] == [(r.method, r.rule, r.schedule) for r in usual]
    (text, *_) = experiment_named("charlm").runs("quick", choice=Choice(data=("my/text.txt",)))
    assert text.payload.data == "my/text.txt"
    with pytest.raises(ConfigError, match="--data mine.npz: experiment 'copy'"):
        experiment_named("copy").runs("quick", choice=Choice(data=("mine.npz",)))
