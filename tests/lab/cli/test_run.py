"""``run NAME``: the smoke tier of every experiment from command to page, and the options that select runs."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from synthgrad.lab.cli.show import Display
from synthgrad.lab.recipes import comparison
from synthgrad.lab.records import Record
from tests.lab.cli.helpers import SMALL, call, records_in

pytestmark = pytest.mark.usefixtures("offline")

SMOKE = ["--tier", "smoke", "--threads", "1", "--device", "cpu"]


def _page(out: Path) -> str:
    return (out / "report.html").read_text(encoding="utf-8")


@pytest.mark.slow(reason="trains every network of a table, twice")
@pytest.mark.usefixtures("few_steps")
def test_table1_makes_a_grid(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    some = ["--methods", "backprop,cdni"]
    assert call("run", "table1", *SMOKE, *some, "--out", tmp_path, "--quiet") == 0
    found = {(r["cell"]["arch"], r["cell"]["layers"], r["method"]) for r in records_in(tmp_path)}
    assert found == {(a, 3, m) for a in ("fcn", "cnn") for m in ("backprop", "cdni")}
    printed = capsys.readouterr().out
    assert "test error in % · smoke" in printed
    assert "mnist-10k cnn 3" in printed
    assert "Mean ± half the distance" in printed
    assert '<section id="grid-1">' in _page(tmp_path)
    assert "could not be made" not in _page(tmp_path)
    assert call("report", tmp_path, "--out", tmp_path / "again.html") == 0
    assert "mnist-10k cnn 3" in capsys.readouterr().out


def test_table1_takes_every_method(tmp_path: Path) -> None:
    some = ["--methods", "local_loss,delayed", "--arch", "fcn", "--seeds", "3"]
    assert call("run", "table1", *SMOKE, *some, "--out", tmp_path, "--quiet") == 0
    found = {(r["method"], r["seed"], r["tier"], r["experiment"]) for r in records_in(tmp_path)}
    assert found == {(m, 3, "smoke", "table1") for m in ("local_loss", "delayed")}


@pytest.mark.slow(reason="trains nine runs, and draws their page")
def test_sparse_makes_a_table_and_a_plot_over_p(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("run", "sparse", *SMOKE, "--methods", "backprop,cdni", "--out", tmp_path) == 0
    records = records_in(tmp_path)
    assert {(r["cell"]["update_prob"], r["steps"]) for r in records} == {(1.0, 40), (0.25, 160), (0.25, 40)}
    for record in records:
        skipped = record["metrics"]["updates_skipped_share"]
        assert (skipped > 0.4) == (record["cell"]["update_prob"] < 1)
    shown = capsys.readouterr()
    assert "equal updates" in shown.out
    assert "equal steps" in shown.out
    assert "backprop, seed 0, 160 steps, p=0.25: ok" in shown.err
    assert re.search(r"· 5 of 6, about \d+ s left", shown.err)
    assert ">probability of an update, p</text>" in _page(tmp_path)
    assert "could not be made" not in _page(tmp_path)


@pytest.mark.slow(reason="trains ten runs, and draws their page")
@pytest.mark.usefixtures("few_steps")
def test_stale_has_a_row_for_each_decay(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("run", "stale", *SMOKE, "--methods", "stale", "--out", tmp_path, "--quiet") == 0
    printed = capsys.readouterr().out
    for decay in ("0", "0.5", "0.9"):
        assert f"stale (decay {decay})" in printed


@pytest.mark.usefixtures("few_steps")
def test_unlock_runs_every_method(tmp_path: Path) -> None:
    assert (
        call("run", "unlock", *SMOKE, "--methods", "backprop,cdni_unlock", "--out", tmp_path, "--quiet") == 0
    )
    assert {r["method"] for r in records_in(tmp_path)} == {"backprop", "cdni_unlock"}


@pytest.mark.slow(reason="trains seven runs, and draws their page")
@pytest.mark.usefixtures("few_steps")
def test_compare_has_budgets_and_says_what_was_skipped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("run", "compare", *SMOKE, "--methods", "backprop,cdni", "--out", tmp_path, "--quiet") == 0
    printed = capsys.readouterr().out
    assert "budgets · compare · smoke" in printed
    assert "cdni (p=0.2)" in printed
    assert '<section id="budgets-1">' in _page(tmp_path)


def test_compare_takes_several_numbers_of_steps(tmp_path: Path) -> None:
    assert call(*SMALL, "--steps", "4,12", "--out", tmp_path, "--quiet") == 0
    found = [(r["steps"], r["method"]) for r in records_in(tmp_path)]
    assert found == [(4, "backprop"), (4, "cdni"), (12, "backprop"), (12, "cdni")]
    assert '<section id="budgets-1">' in _page(tmp_path)


def test_resume_goes_cell_by_cell(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = ["run", "table1", *SMOKE, "--methods", "backprop", "--out", tmp_path]
    assert call(*run, "--arch", "fcn") == 0
    assert call(*run, "--resume") == 0
    assert [r["cell"]["arch"] for r in records_in(tmp_path)] == ["fcn", "cnn"]
    assert "fcn 3 layers, 80 steps: done before, skipped" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("table1 --data mnist", ["--data mnist", "table1", "has mnist-10k"]),
        ("table1 --arch rnn", ["--arch rnn", "has fcn, cnn"]),
        ("table1 --layers 3,9", ["--layers 9", "has 3;"]),
        ("sparse --methods stale", ["--methods stale", "has backprop, dni, cdni"]),
        ("stale --methods backprop,magic", ["--methods magic"]),
        ("table1 --layers 1", ["--layers", "at least 2"]),
        ("table1 --precision half", ["precision 'half'", "float32, bfloat16"]),
        ("tabel1", ["'tabel1'", "budgets, cdni_defaults, charlm, copy, gpt, gpt_codecs, gpt_trials, lag"]),
    ],
)
def test_what_the_experiment_has_not(
    given: str, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("run", *given.split(), *SMOKE, "--out", tmp_path / "out") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert all(word in line for word in words), line
    assert not (tmp_path / "out").exists()


def test_the_time_left_is_said_side_by_side_too(capsys: pytest.CaptureFixture[str]) -> None:
    made = comparison(methods=["backprop"], seeds=range(5), steps=100)
    runs = [replace(config, estimated_ratio=1.0) for config in made]
    record = Record.of({"status": "ok", "metrics": {"test_error_pct": 2.0}, "time": {"train_s": 600.0}})
    with Display(runs, jobs=2, quiet=False) as display:
        display.skipped(runs[0])
        display.ended(runs[1], record)
        display.ended(runs[2], replace(record, status="diverged"))
        display.ended(runs[3], record)
        display.ended(runs[4], record)
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(" · ")[2] for line in lines] == [
        *("1 of 5", "2 of 5, about 15 min left", "3 of 5, about 10 min left", "4 of 5, about 10 min left", "")
    ]
