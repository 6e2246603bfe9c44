"""The commands, in this process: what they print, write and return."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest

from synthgrad.lab.bench.declarations import BENCHMARKS
from synthgrad.lab.recipes import experiments
from synthgrad.lab.tasks import DATASETS, TEXTS
from synthgrad.lab.training.methods import METHODS
from synthgrad.lab.training.recurrent_methods import RECURRENT_METHODS
from synthgrad.version import __version__
from tests.lab.cli.helpers import RECORD_KEYS, SMALL, call, records_in, write_module

pytestmark = pytest.mark.usefixtures("offline")

FACTORIES = """
from torch import nn

calls = 0


def good():
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 8), nn.ReLU(), nn.Linear(8, 10))


class Broken(nn.Module):
    def forward(self, x):
        raise RuntimeError("[enforce fail] no file [/data/x] on <this> disk")


def breaks_later():  # good when it is tried, broken when it is run
    global calls
    calls += 1
    return good() if calls == 1 else nn.Sequential(good(), Broken())
"""


@pytest.fixture
def factories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    return write_module("cli_factories", FACTORIES, tmp_path, monkeypatch)


def test_list_names_everything(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("list") == 0
    names = {line.split()[0] for line in capsys.readouterr().out.splitlines() if line.startswith("  ")}
    assert names == {*experiments(), *BENCHMARKS, *METHODS, *RECURRENT_METHODS, *DATASETS, *TEXTS}


def test_list_says_a_line_about_each(capsys: pytest.CaptureFixture[str]) -> None:
    call("list")
    entries = [line for line in capsys.readouterr().out.splitlines() if line.startswith("  ")]
    assert all(len(line.split()) > 2 for line in entries)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("--version") == 0
    assert capsys.readouterr().out.startswith(f"synthgrad {__version__} ")


@pytest.mark.parametrize("command", [[], ["compare"], ["run"], ["bench"], ["report"], ["list"]], ids=" ".join)
def test_help(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert call(*command, "--help") == 0
    assert capsys.readouterr().out.startswith(" ".join(["Usage: synthgrad", *command]))


@pytest.mark.parametrize(
    "option",
    [
        *(
            "--out",
            "--seeds",
            "--tier",
            "--device",
            "--data-dir",
            "--resume",
            "--threads",
            "--jobs",
            "--quiet",
        ),
        *("--data", "--methods", "--layers", "--width", "--steps", "--batch-size", "--lr", "--update-prob"),
        *("--engine", "--model"),
    ],
)
def test_compare_has_the_option(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    call("compare", "--help")
    assert f"{option} " in capsys.readouterr().out


def test_nothing_global_is_left_changed(capsys: pytest.CaptureFixture[str]) -> None:
    before = warnings.showwarning
    call("list")
    assert capsys.readouterr().out
    assert warnings.showwarning is before


# Training


def test_compare_writes_a_line_for_each_method(done: Path) -> None:
    records = records_in(done)
    assert [r["method"] for r in records] == ["backprop", "cdni"]
    for record in records:
        assert (record["schema"], record["tier"], record["experiment"]) == (1, "custom", "compare")
        assert (record["status"], record["error"], record["seed"]) == ("ok", None, 0)
        assert (record["steps"], record["batch_size"]) == (12, 64)
        assert set(record) >= RECORD_KEYS


def test_compare_records_what_the_contract_names(done: Path) -> None:
    for record in records_in(done):
        cell = {"data": "mnist-10k", "arch": "fcn", "layers": 3, "width": 16}
        assert cell.items() <= record["cell"].items()
        assert {"test_error_pct", "train_error_pct", "test_loss"} <= set(record["metrics"])
        assert set(record["time"]) == {"train_s", "step_ms_median", "step_ms_p10", "step_ms_p90"}
        env = {"synthgrad", "commit", "dirty", "torch", "python", "device", "threads"}
        assert env <= set(record["env"])
        assert record["env"]["threads"] == 1


def test_compare_records_a_curve_to_the_last_step(done: Path) -> None:
    for record in records_in(done):
        assert {"step", "elapsed_s", "train_loss", "test_error_pct"} <= set(record["curve"][0])
        steps = [point["step"] for point in record["curve"]]
        assert steps == sorted(set(steps))
        assert steps[-1] == 12
        assert record["curve"][-1]["test_error_pct"] == record["metrics"]["test_error_pct"]


def test_compare_writes_a_report_with_plots(done: Path) -> None:
    page = (done / "report.html").read_text(encoding="utf-8")
    assert page.count("<svg") >= 4
    assert "cdni (means of classes, rate 1)</td>" in page
    assert sorted(p.name for p in done.iterdir()) == ["report.html", "results.jsonl"]


def test_compare_prints_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(*SMALL, "--methods", "backprop", "--out", tmp_path / "out", "--quiet") == 0
    shown = capsys.readouterr()
    assert "test error" in shown.out
    assert "backprop" in shown.out
    assert str(tmp_path / "out" / "report.html") in shown.out
    assert shown.err == ""


def test_compare_says_how_it_goes_unless_quiet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(*SMALL, "--methods", "backprop", "--out", tmp_path / "out") == 0
    assert "backprop, seed 0: ok, error" in capsys.readouterr().err


def test_same_seed_same_result(done: Path, tmp_path: Path) -> None:
    assert call(*SMALL, "--out", tmp_path / "out", "--quiet") == 0
    for first, again in zip(records_in(done), records_in(tmp_path / "out"), strict=True):
        assert again["metrics"] | {"time_to_target_s": None} == first["metrics"] | {"time_to_target_s": None}


def test_seeds_are_run_method_by_method(tmp_path: Path) -> None:
    assert call(*SMALL, "--steps", "2", "--seeds", "3,1", "--out", tmp_path / "out", "--quiet") == 0
    found = [(r["seed"], r["method"]) for r in records_in(tmp_path / "out")]
    assert found == [(3, "backprop"), (3, "cdni"), (1, "backprop"), (1, "cdni")]


@pytest.mark.parametrize(
    "extra", [("--engine", "plain"), ("--update-prob", "0.5"), ("--lr", "0.01")], ids=" ".join
)
def test_settings_are_recorded(extra: tuple[str, str], tmp_path: Path) -> None:
    assert call(*SMALL, "--methods", "cdni", *extra, "--out", tmp_path / "out", "--quiet") == 0
    (record,) = records_in(tmp_path / "out")
    kept = record["cell"] | record["config"]
    assert str(kept[extra[0].removeprefix("--").replace("-", "_")]) == extra[1]


def test_own_model_and_cuts(factories: str, tmp_path: Path) -> None:
    small = ["compare", "--steps", "3", "--batch-size", "32", "--threads", "1", "--device", "cpu", "--quiet"]
    model = ["--model", f"{factories}:good", "--methods", "backprop,dni"]
    assert call(*small, *model, "--at", "2", "--out", tmp_path / "out") == 0
    backprop, dni = records_in(tmp_path / "out")
    assert dni["cell"]["at"] == ["2"]
    assert backprop["cell"]["arch"] == dni["cell"]["arch"] == f"{factories}:good"


def test_diverged_run_is_kept_and_status_is_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(*SMALL, "--lr", "1e38", "--out", tmp_path / "out", "--quiet") == 1
    shown = capsys.readouterr()
    assert [r["status"] for r in records_in(tmp_path / "out")] == ["diverged", "diverged"]
    assert "2 diverged" in shown.out or shown.out.count("diverged: ") >= 2
    assert shown.err == ""
    assert "lower the learning rate" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("quiet", [("--quiet",), ()], ids=["quiet", "not quiet"])
def test_failed_run_is_kept_and_said_as_it_is(
    quiet: tuple[str, ...], factories: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = [
        "compare",
        "--steps",
        "3",
        "--threads",
        "1",
        "--device",
        "cpu",
        "--model",
        f"{factories}:breaks_later",
    ]
    assert call(*model, "--methods", "backprop", "--out", tmp_path / "out", *quiet) == 1
    (record,) = records_in(tmp_path / "out")
    shown = capsys.readouterr()
    error = "RuntimeError: [enforce fail] no file [/data/x] on <this> disk"
    assert (record["status"], record["error"]) == ("failed", error)
    assert f"backprop: failed: {error}" in " ".join(shown.out.split())
    assert error in " ".join(shown.err.split()) or quiet
    assert "is a bug" not in shown.err


# Going on


def test_resume_skips_what_is_done(done: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = (done / "results.jsonl").read_bytes()
    (tmp_path / "results.jsonl").write_bytes(content)
    assert call(*SMALL, "--out", tmp_path, "--resume") == 0
    assert (tmp_path / "results.jsonl").read_bytes() == content
    shown = capsys.readouterr()
    assert shown.err.count("done before, skipped") == 2
    assert "cdni" in shown.out
    assert (tmp_path / "report.html").exists()


def test_resume_does_what_is_left(done: Path, tmp_path: Path) -> None:
    content = (done / "results.jsonl").read_bytes()
    first = content.splitlines(keepends=True)[0]
    (tmp_path / "results.jsonl").write_bytes(first + b'{"schema": 1, "half')
    assert call(*SMALL, "--out", tmp_path, "--resume", "--quiet") == 0
    after = (tmp_path / "results.jsonl").read_bytes()
    assert after.startswith(first)
    assert [json.loads(line)["method"] for line in (after.splitlines()[0], after.splitlines()[-1])] == [
        *("backprop", "cdni")
    ]
    assert len(after.splitlines()) == 3


def test_resume_does_failed_runs_again(done: Path, tmp_path: Path) -> None:
    ok, other = records_in(done)
    lines = [json.dumps(ok), json.dumps(other | {"status": "failed", "error": "x"})]
    (tmp_path / "results.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    assert call(*SMALL, "--out", tmp_path, "--resume", "--quiet") == 0
    assert [(r["method"], r["status"]) for r in records_in(tmp_path)[2:]] == [("cdni", "ok")]


def test_resume_of_a_diverged_run_has_status_one(done: Path, tmp_path: Path) -> None:
    ok, other = records_in(done)
    lines = [json.dumps(ok), json.dumps(other | {"status": "diverged", "error": "x"})]
    (tmp_path / "results.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    assert call(*SMALL, "--out", tmp_path, "--resume", "--quiet") == 1
    assert len(records_in(tmp_path)) == 2


def test_resume_does_not_take_other_settings_for_the_same(done: Path, tmp_path: Path) -> None:
    (tmp_path / "results.jsonl").write_bytes((done / "results.jsonl").read_bytes())
    assert (
        call(*SMALL, "--steps", "6", "--methods", "backprop", "--out", tmp_path, "--resume", "--quiet") == 0
    )
    assert [r["steps"] for r in records_in(tmp_path)] == [12, 12, 6]


def test_without_resume_a_run_is_appended(done: Path, tmp_path: Path) -> None:
    content = (done / "results.jsonl").read_bytes()
    (tmp_path / "results.jsonl").write_bytes(content)
    assert call(*SMALL, "--methods", "backprop", "--out", tmp_path, "--quiet") == 0
    assert (tmp_path / "results.jsonl").read_bytes().startswith(content)
    assert len(records_in(tmp_path)) == 3


@pytest.mark.slow(reason="starts the command line in processes of its own, several times")
def test_two_jobs(done: Path, tmp_path: Path) -> None:
    assert call(*SMALL, "--jobs", "2", "--out", tmp_path / "out", "--quiet") == 0
    found = {r["method"]: r for r in records_in(tmp_path / "out")}
    assert set(found) == {"backprop", "cdni"}
    for alone in records_in(done):
        beside = found[alone["method"]]
        assert beside["env"]["jobs"] == 2
        assert beside["metrics"]["test_loss"] == pytest.approx(alone["metrics"]["test_loss"], rel=1e-6)
