"""The estimated time left of a sweep, compared with sums worked out by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from synthgrad.lab.recipes import comparison, experiment_named
from synthgrad.lab.training.run import Run
from synthgrad.lab.training.time_left import TimeLeft, run_key, run_names


def _runs(ratio: float = 2.0) -> list[Run]:
    """Return backprop and cdni of 100 steps, for two seeds; a step of cdni costs twice as much."""
    made = comparison(methods=["backprop", "cdni"], seeds=(0, 1), steps=100)
    return [replace(c, estimated_ratio=1.0 if c.method == "backprop" else ratio) for c in made]


def test_nothing_is_known_before_anything_is_done() -> None:
    assert TimeLeft(_runs()).seconds() is None
    assert TimeLeft([]).seconds() == 0


def test_the_first_run_tells_while_it_is_under_way() -> None:
    runs = _runs()
    left = TimeLeft(runs)
    left.stepped(runs[0], 25, 1.0)  # 4 s for a run of backprop, 8 s for one of cdni
    assert left.seconds() == pytest.approx(3 + 8 + 4 + 8)


def test_runs_that_ended_tell_of_those_alike() -> None:
    runs = _runs()
    left = TimeLeft(runs)
    left.ended(runs[0], 10.0)
    assert left.seconds() == pytest.approx(20 + 10 + 20)
    left.ended(runs[1], 50.0)  # dearer than was estimated: so will the next one be
    assert left.seconds() == pytest.approx(10 + 50)
    left.stepped(runs[2], 50, 3.0)  # its own pace counts for what is left of it
    assert left.seconds() == pytest.approx(3 + 50)


def test_jobs_share_what_is_left() -> None:
    runs = _runs()
    left = TimeLeft(runs, jobs=2)
    left.ended(replace(runs[0], snapshots="somewhere"), 10.0)
    assert left.seconds() == pytest.approx((20 + 10 + 20) / 2)
    left.ended(runs[1], 20.0)
    left.ended(runs[2], 10.0)
    assert left.seconds() == pytest.approx(20)  # one run keeps one job busy


def test_what_was_skipped_or_failed_tells_nothing() -> None:
    runs = _runs()
    left = TimeLeft(runs)
    left.ended(runs[0], None)
    assert left.seconds() is None
    left.ended(runs[1], 20.0)
    assert left.seconds() == pytest.approx(10 + 20)
    for run in runs[2:]:
        left.ended(run, None)
    assert left.seconds() == 0


def test_networks_of_another_cost_are_judged_by_themselves_once_known() -> None:
    runs = [
        c for c in experiment_named("table1").runs("smoke", (0, 1)) if c.method in ("backprop", "cdni")
    ]  # fcn of 80 steps and cnn of 40
    fcn, cnn = ([c for c in runs if c.payload.arch == a] for a in ("fcn", "cnn"))
    left = TimeLeft(runs)
    left.ended(fcn[0], 8.0)
    left.ended(cnn[0], 40.0)
    assert left.seconds() == pytest.approx(3 * 8 + 3 * 40)


def _names(configs: list[Run]) -> list[str]:
    names = run_names(configs)
    return [names[run_key(c)] for c in configs]


def test_names_say_what_varies_in_the_sweep() -> None:
    assert _names(_runs()) == ["backprop, seed 0", "cdni, seed 0", "backprop, seed 1", "cdni, seed 1"]
    rows = _names(experiment_named("table1").runs("quick"))
    assert rows[0] == "backprop, seed 0, mnist, fcn 3 layers, 6,000 steps"
    assert "cdni, seed 0, 5,000 steps, p=0.5" in _names(experiment_named("sparse").runs("quick"))
    assert "stale, seed 0, decay 0.9" in _names(experiment_named("stale").runs("quick"))


def test_no_two_runs_have_one_name() -> None:
    for name in ("budgets", "table1", "sparse", "stale", "dni_search"):
        names = _names(experiment_named(name).runs("smoke", (0, 1)))
        assert len(set(names)) == len(names)
