"""The experiments with a GPT: which rows they have, and that rows of one table share what they must."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from synthgrad.core import ConfigError
from synthgrad.lab.recipes import Choice, comparison, experiment_named
from synthgrad.lab.recipes._gpt_rows import ROWS
from synthgrad.lab.training.payloads import FeedForward, LanguageModel
from synthgrad.lab.training.rehearsal import rehearse_all
from synthgrad.lab.training.run import Run
from synthgrad.lab.training.time_left import run_names


def words(run: Run) -> str:
    """Return a row of the trials in words."""
    rule, schedule = run.rule, run.schedule
    parts = [run.method, schedule.optimizer]
    parts += [f"lag {rule.delay}"] if rule.delay else []
    parts += ["feedback"] if schedule.error_feedback else []
    parts += [f"blocks {rule.blocks}"] if run.method == "local_loss" else []
    parts += [f"weight {rule.weight:g}"] if run.method == "late_correction" else []
    parts += ["recomputed"] if rule.recompute else []
    parts += ["four modules"] if run.payload.modules == 4 else []
    return ", ".join(parts)


def test_the_trials_are_rows_of_one_table() -> None:
    made = experiment_named("gpt_trials").runs("quick")
    assert [words(run) for run in made] == [
        "backprop, adamw",
        "backprop, muon",
        "delayed, adamw, lag 1",
        "delayed, adamw, lag 1, feedback",
        "delayed, muon, lag 1",
        "delayed, muon, lag 1, feedback",
        "delayed, adamw, lag 4",
        "delayed, nadam, lag 4",
        "delayed, muon, lag 4",
        "local_loss, adamw, blocks 0",
        "local_loss, adamw, blocks 1",
        "late_correction, adamw, lag 4, weight 0.5",
        "late_correction, adamw, lag 4, weight 1",
        "late_correction, adamw, lag 4, weight 0.5, recomputed",
        "head_gradient, adamw",
        "cdni, adamw",
        "local_loss, adamw, blocks 1, four modules",
        "interlocked, adamw, four modules",
    ]
    schedules = {replace(run.schedule, optimizer="adamw", error_feedback=False) for run in made}
    (schedule,) = schedules
    assert (schedule.steps, schedule.batch_size, schedule.lr, schedule.lr_factor(999)) == (1000, 32, 2e-3, 1)
    payloads = {replace(run.payload, modules=None, engine="plain") for run in made}
    assert payloads == {LanguageModel(data="shakespeare", modules=None, engine="plain")}


def test_lags_cuts_and_optimizers_of_the_experiment() -> None:
    made = [run for run in experiment_named("gpt").runs("quick") if run.schedule.accumulate == 1]
    late = {
        (run.schedule.optimizer, run.rule.delay, run.schedule.error_feedback)
        for run in made
        if run.method == "delayed"
    }
    assert {lag for _, lag, _ in late} == {1, 4, 16}
    assert late >= {(name, 1, feedback) for name in ("adamw", "muon") for feedback in (False, True)}
    corrected = {(run.rule.delay, run.rule.share) for run in made if run.method == "late_correction"}
    assert corrected == {(1, 1.0), (4, 1.0), (16, 1.0), (4, 0.25)}
    assert all(run.rule.weight is None for run in made if run.method == "late_correction")  # none by hand
    local = {(run.payload.modules, run.rule.blocks) for run in made if run.method == "local_loss"}
    assert local == {(2, 0), (2, 1), (2, 2), (4, 0), (4, 1)}  # at most two private blocks
    assert {run.payload.modules for run in made if run.method == "interlocked"} == {4}


def test_rows_share_tokens_and_updates() -> None:
    made = experiment_named("gpt").runs("quick", seeds=(0, 1, 2))
    assert {run.schedule.steps * run.schedule.batch_size // 32 for run in made} == {3000, 5400}
    more = [run for run in made if run.schedule.steps == 5400]
    assert {(run.method, run.seed) for run in more} == {("backprop", 0)}  # with the compute of private blocks
    assert {run.schedule.batch_size * run.payload.context * run.schedule.accumulate for run in made} == {2048}
    assert {run.precision for run in made} == {"bfloat16"}
    assert {(run.payload.layers, run.payload.width) for run in made} == {(4, 128)}
    again = [run for run in made if run.payload.data == "ptb"]
    assert len(again) == 5
    assert {run.seed for run in again} == {0}


def test_what_is_claimed_has_three_seeds() -> None:
    made = experiment_named("gpt").runs("quick", seeds=(0, 1, 2))
    rows = Counter(
        (run.method, run.schedule, run.rule, replace(run.payload, modules=None), run.payload.modules)
        for run in made
    )
    assert set(rows.values()) == {1, 3}
    claimed = {
        (method, schedule.optimizer, getattr(rule, "delay", 0), modules)
        for (method, schedule, rule, _, modules), count in rows.items()
        if count == 3
    }
    assert claimed >= {
        ("backprop", "adamw", 0, None),
        ("backprop", "muon", 0, None),
        ("delayed", "adamw", 1, 2),
        ("delayed", "muon", 1, 2),
        ("local_loss", "muon", 0, 2),
        ("local_loss", "muon", 0, 4),
        ("late_correction", "muon", 4, 2),
    }


def test_rates_of_a_wider_network_are_lower() -> None:
    rates = {row.method: row.rate for row in ROWS if row.optimizer == "adamw" and row.method == "backprop"}
    wide, *_ = experiment_named("gpt").runs("full")
    assert wide.payload.width == 768
    assert wide.schedule.lr == pytest.approx(rates["backprop"] / 6)


def test_the_search_has_a_sixth_of_the_length_and_every_row() -> None:
    made = experiment_named("gpt_search").runs("quick")
    whole = experiment_named("gpt").runs("quick")[0].schedule
    assert {run.schedule.steps for run in made} == {whole.steps // 6}
    assert {replace(run.payload, modules=None, engine="plain") for run in made} == {
        LanguageModel(data="shakespeare", modules=None, engine="plain")
    }
    searched = {
        (run.method, run.schedule.optimizer, run.payload.modules, run.rule, run.schedule.lr) for run in made
    }
    for run in experiment_named("gpt").runs("quick", choice=Choice(data=("shakespeare",))):
        schedule = run.schedule
        if schedule.accumulate == 1:
            assert (run.method, schedule.optimizer, run.payload.modules, run.rule, schedule.lr) in searched
    assert all(row.rate in row.rates for row in ROWS)
    assert all(list(row.rates) == sorted(row.rates) for row in ROWS)


@pytest.mark.parametrize("tier", ["smoke", "quick", "full"])
def test_microbatches_make_the_same_updates(tier: str) -> None:
    made = experiment_named("gpt").runs(tier, choice=Choice(methods=("backprop",)))
    whole, *_ = [run for run in made if run.schedule.optimizer == "adamw"]
    *_, parts = made
    a, b = whole.schedule, parts.schedule
    assert b.accumulate == 4
    assert (b.steps // 4, b.batch_size * 4, b.eval_every // 4) == (a.steps, a.batch_size, a.eval_every)
    assert b.lr == a.lr
    assert [b.lr_factor(4 * t) for t in (500, 2000)] == pytest.approx(
        [a.lr_factor(t) for t in (500, 2000)], rel=0.01
    )


@pytest.mark.parametrize("name", ["my.txt", "text:mine"])
def test_any_text_can_be_named(name: str) -> None:
    made = experiment_named("gpt").runs("smoke", choice=Choice(data=(name,), methods=("backprop",)))
    assert {run.payload.data for run in made} == {name}
    assert {run.payload.data for run in comparison("smoke", name, arch="gpt")} == {name}


def test_what_is_not_a_text_is_refused() -> None:
    with pytest.raises(ConfigError, match="--data my.npz: experiment 'gpt'"):
        experiment_named("gpt").runs("smoke", choice=Choice(data=("my.npz",)))


@pytest.mark.parametrize("name", ["gpt", "gpt_codecs", "gpt_search", "gpt_trials"])
def test_progress_tells_every_run_from_the_others(name: str) -> None:
    made = experiment_named(name).runs("quick")
    assert len(set(run_names(made).values())) == len(made)


@pytest.mark.parametrize("name", ["gpt", "gpt_codecs", "gpt_search", "gpt_trials"])
def test_every_run_of_smoke_can_begin(name: str) -> None:
    made = experiment_named(name).runs("smoke")
    assert rehearse_all(made) == made


# A comparison


def test_a_comparison_trains_a_gpt_on_the_embedded_text() -> None:
    made = comparison(arch="gpt")
    assert [run.method for run in made] == ["backprop", "delayed", "local_loss", "late_correction"]
    assert {run.tier for run in made} == {"quick"}
    assert {run.payload.data for run in made} == {"shakespeare-50k"}
    assert [run.payload.engine for run in made] == ["plain", *["in-process"] * 3]
    assert [run.payload.modules for run in made] == [None, 2, 2, 2]
    assert len({run.schedule for run in made}) == 1
    assert {run.payload for run in comparison("smoke")} != {run.payload for run in made}
    assert all(isinstance(run.payload, FeedForward) for run in comparison("smoke"))


@pytest.mark.parametrize(
    ("given", "tier"),
    [
        ({"context": 16, "tokens": "bytes", "tied": True, "heads": 2, "width": 32, "modules": 4}, "quick"),
        ({"tokens": "bpe", "vocabulary": 300, "at": ("block1",)}, "quick"),
        ({"optimizer": "muon"}, "custom"),
        ({"delay": 3}, "custom"),
        ({"accumulate": 2}, "custom"),
        ({"error_feedback": True}, "custom"),
        ({"blocks": 0}, "custom"),
        ({"unembedding": "network"}, "custom"),
    ],
)
def test_settings_that_leave_the_tier(given: dict[str, object], tier: str) -> None:
    (run,) = comparison(methods=["local_loss"], arch="gpt", **given)
    assert run.tier == tier
    parts = {**run.payload.cell(), **run.payload.config(), **run.config(), **run.config()["rule"]}
    for name, value in given.items():
        assert parts[name] == (
            list(value) if isinstance(value, tuple) else "Muon" if value == "muon" else value
        )


def test_named_cuts_take_the_place_of_modules() -> None:
    (run,) = comparison(methods=["cdni"], arch="gpt", at=("block1", "block3"))
    assert (run.payload.at, run.payload.modules) == (("block1", "block3"), None)


def test_the_reference_has_no_late_gradients_to_correct() -> None:
    for arch in ("fcn", "gpt"):
        reference, late = comparison(
            "smoke",
            None,
            ["backprop", "delayed"],
            arch=arch,
            error_feedback=True,
            versions=1,
            optimizer="adamw",
        )
        assert (reference.schedule.error_feedback, reference.schedule.versions) == (False, None)
        assert (late.schedule.error_feedback, late.schedule.versions) == (True, 1)
        assert reference.schedule.optimizer == late.schedule.optimizer == "adamw"


def test_a_vocabulary_is_chosen_for_byte_pairs_only() -> None:
    assert comparison(methods=["cdni"], arch="gpt", tokens="bpe")[0].payload.vocabulary == 512
    assert comparison(methods=["cdni"], arch="gpt", tokens="bytes")[0].payload.vocabulary is None


# Codecs


def test_codecs_are_held_against_the_same_rows_without() -> None:
    made = experiment_named("gpt_codecs").runs("quick")
    found = {(run.method, run.rule.codec, run.rule.message_codec) for run in made if run.method != "backprop"}
    assert {("delayed", "bfloat16", None), ("delayed", "8bits", None)} <= found
    assert {("local_loss", codec, None) for codec in ("float32", "bfloat16", "8bits", "4bits")} <= found
    assert ("cdni", "8bits", "largest:0.0625") in found
    assert {run.payload.modules for run in made} == {4, None}
    # A pipeline that waits, and microbatches that are one update late at the most, from whichever stage they come.
    late = {(run.method, run.rule.delay, run.schedule.accumulate) for run in made}
    assert {found for found in late if found[0] == "delayed"} == {("delayed", 0, 1), ("delayed", 2, 8)}
    assert ("interlocked", 8, 8) in late
    assert ("late_correction", 4, 1) in late
    table = {row.method: row.rate for row in ROWS if row.optimizer == "muon"}
    for run in made:
        expected = 1.6e-2 if run.method == "delayed" else table[run.method]
        assert run.schedule.lr == expected
    assert {run.schedule.steps / run.schedule.accumulate for run in made} == {3000}
    assert {run.schedule.batch_size * run.schedule.accumulate for run in made} == {32}
    wide = experiment_named("gpt_codecs").runs("full")[0]
    assert wide.schedule.lr == pytest.approx(1.6e-2 / 6)
