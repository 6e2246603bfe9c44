"""``compare --engine layer-parallel``: runs like those of any other engine."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from synthgrad.core import ConfigError
from synthgrad.lab.training.rehearsal import rehearse
from synthgrad.lab.training.train import train
from tests.lab.cli.helpers import call, records_in
from tests.lab.runs import changed, compared

pytestmark = pytest.mark.usefixtures("offline")


OWN = """
from torch import nn


def Own():
    blocks = [nn.Sequential(nn.Linear(16, 16), nn.LayerNorm(16), nn.ReLU()) for _ in range(3)]
    return nn.Sequential(nn.Sequential(nn.Flatten(), nn.Linear(784, 16)), *blocks, nn.Linear(16, 10))


class Other(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(Own().children())

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x
"""


def config(method: str = "cdni", engine: str = "layer-parallel", **over: Any) -> Any:
    sizes: dict[str, Any] = {"layers": 5, "width": 32, "steps": 120, "batch_size": 64} | over
    return compared(method, engine=engine, **sizes)


@pytest.mark.parametrize("method", ["cdni", "dni", "local_loss", "no_bprop"])
def test_a_run_learns_about_as_in_process(method: str) -> None:
    ours, theirs = (train(config(method, engine, steps=300)) for engine in ("layer-parallel", "in-process"))
    assert ours["status"] == "ok", ours["error"]
    assert ours["cell"]["engine"] == "layer-parallel"
    errors = [record["metrics"]["test_error_pct"] for record in (ours, theirs)]
    assert errors[0] < 60 or method in ("dni", "no_bprop")
    assert abs(errors[0] - errors[1]) < 12
    skipped = ours["metrics"]["updates_skipped_share"]
    assert 0 < skipped < 0.02 or method == "no_bprop"  # layers that no batch had reached


def test_what_the_engine_cannot_do_is_said_before_anything_runs() -> None:
    for method, words in (("delayed", "wait for its message"), ("dni_unlock", "synthetic inputs")):
        with pytest.raises(ConfigError, match=words):
            rehearse(config(method))
    with pytest.raises(ConfigError, match="asked one by one, in ordinary Python"):
        rehearse(changed(config("sobolev"), compiled=True))
    with pytest.raises(ConfigError, match="layer-parallel engine, which skips no updates"):
        config(update_prob=0.5)
    with pytest.raises(ConfigError, match="accepted: in-process, layer-parallel, plain"):
        config(engine="warp")


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ("--methods delayed", "has the module below wait for its message"),
        ("--methods dni_unlock", "has synthetic inputs"),
        ("--methods cdni --update-prob 0.5", "skips no updates"),
        ("--methods cdni --arch cnn", r"'layer1' has shape \(B, 64, 14, 14\) and what crosses 'layer2'"),
        ("--methods cdni --layers 2", "2 modules, expected at least 3"),
        ("--methods cdni --batch-size 1", "BatchNorm, which needs at least 2 examples"),
        ("--methods sobolev --compile", "asked one by one"),
        ("--methods cdni --model own_models:Other", "lies inside a module that has a forward of its own"),
    ],
)
def test_what_it_cannot_train_is_one_line(
    options: str,
    match: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "own_models.py").write_text(OWN, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    words = ("compare", "--tier", "smoke", "--device", "cpu", "--quiet", "--engine", "layer-parallel")
    assert call(*words, "--out", tmp_path / "out", *options.split()) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(match, line)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "options",
    [
        "--methods stale,sobolev --layers 4 --width 16",
        "--methods cdni --layers 4 --width 16 --precision bfloat16",
        "--methods cdni --layers 4 --width 16 --batch-size 300",  # the last batch of an epoch would be smaller
        "--methods cdni --model own_models:Own",
    ],
)
def test_what_it_can_train(
    options: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_models.py").write_text(OWN, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    words = ("compare", "--tier", "smoke", "--device", "cpu", "--quiet", "--engine", "layer-parallel")
    done = call(*words, "--steps", "40", "--out", tmp_path / "out", *options.split())
    assert done == 0, capsys.readouterr().err
    assert {r["cell"]["engine"] for r in records_in(tmp_path / "out")} == {"layer-parallel"}


def test_a_rehearsal_counts_its_work() -> None:
    work, reference = rehearse(config()), rehearse(config(engine="in-process"))
    assert work is not None
    assert reference is not None
    assert 1 < work.step / reference.step < 1.5  # M predicts once more


def test_bfloat16_takes_the_general_step() -> None:
    record = train(replace(config(steps=30), precision="bfloat16"))
    assert record["status"] == "ok", record["error"]


@pytest.mark.slow(reason="a C++ compiler builds the step")
@pytest.mark.compiles
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.skipif(
    shutil.which("g++") is None and shutil.which("clang++") is None,
    reason="needs a C++ compiler for torch.compile on a CPU",
)
def test_a_compiled_run_ends_where_the_eager_one_does() -> None:
    made = config(layers=4, width=16, steps=60)
    eager, compiled = train(made), train(changed(made, compiled=True))
    assert compiled["status"] == "ok", compiled["error"]
    assert compiled["metrics"]["test_loss"] == pytest.approx(eager["metrics"]["test_loss"], rel=0.05)


def test_the_command_line_knows_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = call(
        *("compare", "--tier", "smoke", "--device", "cpu", "--quiet", "--out", tmp_path, "--steps", "40"),
        *("--engine", "layer-parallel", "--methods", "backprop,cdni", "--layers", "4", "--width", "16"),
    )
    assert done == 0, capsys.readouterr().err
    assert [(r["method"], r["cell"]["engine"]) for r in records_in(tmp_path)] == [
        ("backprop", "plain"),
        ("cdni", "layer-parallel"),
    ]
    assert "cdni (layer-parallel, means of classes" in capsys.readouterr().out
