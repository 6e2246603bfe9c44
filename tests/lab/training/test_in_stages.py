"""``compare --engine stages``: a run in several processes is a run like any other."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import pytest
import torch
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from synthgrad.core import ConfigError
from synthgrad.lab.recipes import comparison
from synthgrad.lab.tasks.gpt import gpt
from synthgrad.lab.training import in_stages, trainers
from synthgrad.lab.training.methods import DataFacts, method_named
from synthgrad.lab.training.train import train
from synthgrad.lab.training.trainers import TrainerSpec, make_trainer
from tests.lab.cli.helpers import call, records_in

SHORT = [
    "--tier",
    "smoke",
    "--steps",
    "40",
    "--width",
    "32",
    "--batch-size",
    "64",
    "--threads",
    "1",
    "--quiet",
]


@pytest.mark.slow(reason="starts two processes for each run, and trains until it has learned")
def test_stages_learn_what_one_process_learns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["--methods", "backprop,cdni,delayed", "--steps", "300"]
    assert call("compare", *SHORT, *asked, "--engine", "stages", "--out", str(tmp_path / "a")) == 0
    ours = records_in(tmp_path / "a")
    assert [(r["method"], r["cell"]["engine"], r["status"]) for r in ours] == [
        ("backprop", "plain", "ok"),
        ("cdni", "stages", "ok"),
        ("delayed", "stages", "ok"),
    ]
    in_one = ["--at", "layer2", "--engine", "in-process"]
    assert call("compare", *SHORT, *asked, *in_one, "--out", str(tmp_path / "b")) == 0
    for one, other in zip(ours, records_in(tmp_path / "b"), strict=True):
        # Not the same lags: what arrives when is up to the machine, and matters most in the first hundred steps.
        assert abs(one["metrics"]["test_error_pct"] - other["metrics"]["test_error_pct"]) < 12
        assert one["metrics"]["test_error_pct"] < 30
    capsys.readouterr()


@pytest.mark.slow(reason="starts four processes for each run")
def test_a_gpt_in_stages_has_the_weights_and_the_bits_of_one_process(tmp_path: Path) -> None:
    asked = [
        "--arch",
        "gpt",
        "--data",
        "shakespeare-50k",
        "--methods",
        "cdni,delayed,local_loss",
        "--delay",
        "1",
    ]
    asked += ["--steps", "18", "--accumulate", "3", "--width", "16", "--context", "16", "--modules", "4"]
    asked += ["--batch-size", "4", "--threads", "1", "--error-feedback", "--quiet"]
    found: list[Any] = []
    for engine in ("in-process", "stages"):
        assert call("compare", *asked, "--engine", engine, "--out", str(tmp_path / engine)) == 0
        found.append(records_in(tmp_path / engine))
    for one, other in zip(*found, strict=True):
        assert (one["cell"]["engine"], other["cell"]["engine"]) == ("in-process", "stages")
        assert one["weights_sha256"] == other["weights_sha256"]
        assert one["metrics"]["bits_per_char"] == other["metrics"]["bits_per_char"]
        ours, theirs = ([p["val_bits_per_char"] for p in r["curve"]] for r in (one, other))
        assert ours == theirs


@pytest.mark.slow(reason="starts four processes for each run")
def test_stages_that_run_free_learn_what_they_learn_at_exact_lags(tmp_path: Path) -> None:
    asked = ["--arch", "gpt", "--data", "shakespeare-50k", "--methods", "late_correction", "--delay", "2"]
    asked += ["--steps", "60", "--width", "16", "--context", "16", "--modules", "4", "--batch-size", "4"]
    asked += ["--threads", "1", "--quiet", "--engine", "stages"]
    found: list[Any] = []
    for free in ([], ["--free-running"]):
        assert call("compare", *asked, *free, "--out", str(tmp_path / f"{len(free)}")) == 0
        found += records_in(tmp_path / f"{len(free)}")
    exact, free = found
    assert "free_running" not in exact["config"]
    assert free["config"]["free_running"] is True
    assert abs(exact["metrics"]["val_bits_per_char"] - free["metrics"]["val_bits_per_char"]) < 0.3


@pytest.mark.parametrize("free", [False, True])
def test_answers_are_learned_from_at_exact_lags_unless_stages_run_free(
    free: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}

    def made(net: Any, criterion: Any, optimizer: Any, **settings: Any) -> SimpleNamespace:
        asked.update(settings)
        return SimpleNamespace(optimizers=[])

    monkeypatch.setattr(trainers, "Stages", made)
    method = method_named("late_correction")
    rule = replace(method.settings("shakespeare", "gpt"), delay=3, blocks=0)
    spec = TrainerSpec(method, rule, DataFacts(11, 4), 1e-3, 0, "stages", tokens=True, free_running=free)
    model = gpt(11, width=8, blocks=2, heads=2, context=4)
    make_trainer(spec, model, ["block1"], torch.zeros(2, 4, dtype=torch.int64))
    assert (asked["window"], asked["deterministic"]) == (3, not free)


def test_a_run_that_cannot_begin_is_refused_before_any_process_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["--methods", "cdni", "--engine", "stages", "--at", "nowhere", "--out", str(tmp_path)]
    assert call("compare", *SHORT, *asked) == 2
    assert "nowhere" in capsys.readouterr().err


def test_a_process_that_dies_is_named_with_its_exit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    def die(*args: Any) -> NoReturn:
        raise ChildFailedError("stage", {1: ProcessFailure(local_rank=1, pid=7, exitcode=-9, error_file="")})

    monkeypatch.setattr(in_stages, "elastic_launch", lambda config, entry: die)
    (run,) = comparison(methods=("cdni",), engine="stages")
    with pytest.raises(ConfigError, match=r"stage 1 died \(exit code -9\); use --engine in-process"):
        in_stages.run_in_stages(train, run, 2)


@pytest.mark.slow(reason="starts pipelines of processes anew")
def test_what_fails_in_a_process_is_a_failed_record(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["--methods", "cdni", "--engine", "stages", "--lr", "1e30", "--out", str(tmp_path)]
    assert call("compare", *SHORT, *asked) == 1
    (record,) = records_in(tmp_path)
    assert record["status"] == "diverged"
    assert "not finite" in record["error"]
    capsys.readouterr()


@pytest.mark.slow(reason="starts two processes for each of two networks")
def test_two_stages_runs_both_networks_in_one_process_and_in_two(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["--tier", "smoke", "--methods", "cdni", "--threads", "1", "--quiet", "--out", str(tmp_path)]
    assert call("run", "two_stages", *asked) == 0
    found = {(r["cell"]["arch"], r["cell"]["engine"]): r for r in records_in(tmp_path)}
    assert set(found) == {(arch, engine) for arch in ("cnn", "lstm") for engine in ("in-process", "stages")}
    for engine in ("in-process", "stages"):
        assert found["lstm", engine]["metrics"]["bits_per_char"] < 6
        assert found["lstm", engine]["config"]["rule"]["hidden"] == [256]
        assert found["cnn", engine]["curve"][-1]["step"] == 20
    table = capsys.readouterr().out
    assert "cdni (stages, hidden 256, lr ×0.3)" in " ".join(table.split())
