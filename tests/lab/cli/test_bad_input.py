"""Bad usage ends with status 2 and one line that says what was given and what is accepted; nothing is written."""

from __future__ import annotations

import gzip
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from synthgrad.lab.records import locked, store
from synthgrad.lab.report import page as pages
from tests.lab.cli.helpers import call, write_module

pytestmark = pytest.mark.usefixtures("offline")

COMPARE = [
    *("compare", "--steps", "3", "--batch-size", "32", "--methods", "backprop,cdni", "--device", "cpu"),
    *("--threads", "1", "--quiet"),
]
FACTORIES = """
import torch
from torch import nn


def good():
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 8), nn.ReLU(), nn.Linear(8, 10))


def raises():
    raise OSError("no weights,\\nno network")


def no_module():
    return [good()]


def few_outputs():
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 8), nn.ReLU(), nn.Linear(8, 2))


def no_scores():
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 8), nn.ReLU(), nn.Linear(8, 1), nn.Flatten(0))


def other_input():
    return nn.Sequential(nn.Flatten(), nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 10))


def nothing_to_learn():
    return nn.Sequential(nn.Flatten(), nn.AvgPool1d(78, 78))


no_function = 3
"""


@pytest.fixture
def factories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    return write_module("bad_factories", FACTORIES, tmp_path, monkeypatch)


def _refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Return the error line of a call that must be refused as bad usage, in the form of the contract."""
    status = call(*arguments)
    shown = capsys.readouterr()
    lines = shown.err.splitlines()
    assert len(lines) == 1, shown.err
    assert lines[0].startswith("synthgrad: error: ")
    assert "Traceback" not in lines[0]
    assert "is a bug" not in lines[0]
    assert shown.out == ""
    assert status == 2
    return lines[0]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("--methods backprop,dnj", ["dnj", "backprop", "cdni"]),
        ("--methods backprop,backprop", ["twice"]),
        ("--methods ,", ["empty name"]),
        ("--data mnist-11k", ["mnist-11k", "mnist-10k", "cifar10"]),
        ("--tier slow", ["slow", "smoke", "quick", "full"]),
        ("--engine steam", ["steam", "in-process", "plain"]),
        ("--device tpu", ["tpu", "cpu", "cuda", "auto"]),
        ("--nonsense 3", ["--nonsense"]),
        ("surplus", ["surplus"]),
        ("--layers 1", ["layers=1", "at least 2"]),
        ("--layers two", ["--layers", "two"]),
        ("--width 0", ["width=0", "at least 1"]),
        ("--batch-size 0", ["batch size 0", "at least 1"]),
        ("--batch-size -4", ["batch size -4", "at least 1"]),
        ("--batch-size 10001", ["batch size 10001", "1 to 10000"]),
        ("--batch-size 1", ["--batch-size 1", "at least 2 examples"]),
        ("--batch-size 1 --methods cdni", ["1"]),
        ("--lr nan", ["learning rate nan", "over 0"]),
        ("--lr inf", ["learning rate inf", "over 0"]),
        ("--lr 0", ["learning rate 0", "over 0"]),
        ("--lr -1", ["learning rate -1", "over 0"]),
        ("--lr much", ["--lr", "much"]),
        ("--steps 0", ["--steps", "'0'", "at least 1"]),
        ("--steps -5", ["--steps", "'-5'", "at least 1"]),
        ("--steps 5,5", ["--steps", "different"]),
        ("--update-prob 0", ["update probability 0", "up to 1"]),
        ("--update-prob 2", ["update probability 2", "up to 1"]),
        ("--update-prob nan", ["update probability nan", "up to 1"]),
        ("--update-prob 0.5 --engine plain", ["update", "plain"]),
        ("--seeds a", ["--seeds", "1,2,3"]),
        ("--seeds 0,0", ["--seeds", "different"]),
        ("--seeds -1", ["--seeds", "at least 0"]),
        ("--seeds 99999999999999999999999", ["seed"]),
        ("--jobs 0", ["--jobs"]),
        ("--threads 0", ["--threads"]),
        ("--at nowhere", ["nowhere", "layer1"]),
        ("--at layer1,layer1", ["twice"]),
        ("--model nowhere:factory", ["nowhere:factory", "ModuleNotFoundError", "factory"]),
        ("--model nowhere", ["--model nowhere", "package.module:factory"]),
        ("--model nowhere.factory", ["--model nowhere.factory", "package.module:factory"]),
        ("--model fcn", ["--model fcn", "package.module:factory"]),
        ("--model :factory", ["--model :factory", "package.module:factory"]),
        ("--model nowhere:", ["--model nowhere:", "package.module:factory"]),
        ("--model torch:nothing", ["torch:nothing", "AttributeError"]),
        ("--model torch.nn:Identity --width 16", ["--model", "--width"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "says",
)
def test_compare_refuses(
    given: str, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    line = _refused(capsys, *COMPARE, *given.split(), "--out", out)
    assert not [word for word in words if word not in line], line
    assert not out.exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_cuda_where_there_is_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = _refused(capsys, *COMPARE, "--device", "cuda", "--out", tmp_path / "out")
    assert "--device cpu" in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("factory", "words"),
    [
        ("raises", ["OSError: no weights, no network"]),
        ("no_module", ["list", "torch.nn.Module"]),
        ("no_function", ["TypeError", "torch.nn.Module"]),
        ("few_outputs", ["10 classes"]),
        ("no_scores", ["10 classes"]),
        ("other_input", ["(1, 28, 28)"]),
        ("nothing_to_learn", ["parameter"]),
    ],
)
@pytest.mark.parametrize("methods", ["backprop", "cdni", "backprop,cdni"])
def test_factory_is_refused(
    factory: str,
    words: list[str],
    methods: str,
    factories: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    model = f"{factories}:{factory}"
    line = _refused(capsys, *COMPARE, "--methods", methods, "--model", model, "--out", out)
    assert not [word for word in (model, *words) if word not in line], line
    assert not out.exists()


def test_cut_that_the_network_lacks(
    factories: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = ["--model", f"{factories}:good", "--at", "1,layer1"]
    assert "layer1" in _refused(capsys, *COMPARE, *own, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


# Data


def test_data_folder_that_does_not_exist(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = ["--data", "mnist", "--data-dir", tmp_path / "nowhere"]
    line = _refused(capsys, *COMPARE, *data, "--out", tmp_path / "out")
    assert f"{tmp_path / 'nowhere'}: does not exist" in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "file"), [("mnist", "mnist/train-images-idx3-ubyte.gz"), ("cifar10", "cifar-10-python.tar.gz")]
)
def test_data_that_is_not_there(
    name: str, file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "data").mkdir()
    data = ["--data", name, "--data-dir", tmp_path / "data"]
    line = _refused(capsys, *COMPARE, *data, "--out", tmp_path / "out")
    assert str(tmp_path / "data" / file) in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("damage", ["cut", "no gzip", "other content"])
def test_data_that_is_damaged(damage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "mnist" / "train-images-idx3-ubyte.gz"
    path.parent.mkdir()
    whole = gzip.compress(bytes(1000))
    path.write_bytes({"cut": whole[:-9], "no gzip": b"<html>", "other content": whole}[damage])
    for name in ("train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"):
        (path.parent / name).write_bytes(b"")
    data = ["--data", "mnist", "--data-dir", tmp_path]
    assert str(path) in _refused(capsys, *COMPARE, *data, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


# Folders


@pytest.mark.parametrize("below", ["", "/folder"], ids=["a file", "below a file"])
def test_out_that_is_a_file(below: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("kept")
    line = _refused(capsys, *COMPARE, "--out", f"{tmp_path / 'file'}{below}")
    assert f"--out {tmp_path / 'file'}{below}: cannot be written" in line
    assert (tmp_path / "file").read_text() == "kept"


def test_resume_without_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert "--out" in _refused(capsys, *COMPARE, "--resume")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("folder", ["empty", "nowhere"])
def test_report_of_a_folder_without_records(
    folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    line = _refused(capsys, "report", tmp_path / folder)
    assert f"{tmp_path / folder}: has no results.jsonl" in line
    assert [p.name for p in tmp_path.rglob("*")] == ["empty"]


def test_report_of_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert "DIR" in _refused(capsys, "report")


@pytest.mark.parametrize("page", ["folder", "missing/page.html"])
def test_report_that_cannot_be_written(page: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "results.jsonl").write_text("")
    (tmp_path / "folder").mkdir()
    line = _refused(capsys, "report", tmp_path, "--out", tmp_path / page)
    assert f"{tmp_path / page}: cannot be written" in line
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["folder", "results.jsonl"]


@pytest.mark.parametrize("page", [".", "/", ""])
def test_report_that_is_to_be_a_folder(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "results.jsonl").write_text("")
    line = _refused(capsys, "report", tmp_path, "--out", page)
    assert "cannot be written (Is a directory); name another file with --out" in line
    assert [p.name for p in tmp_path.iterdir()] == ["results.jsonl"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_report_does_not_put_a_file_in_the_place_of_a_device(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "results.jsonl").write_text("")
    os.mkfifo(tmp_path / "pipe")
    line = _refused(capsys, "report", tmp_path, "--out", tmp_path / "pipe")
    assert f"{tmp_path / 'pipe'}: cannot be written (Is no regular file)" in line
    assert (tmp_path / "pipe").is_fifo()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_text_that_is_a_pipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.mkfifo(tmp_path / "pipe")
    words = ["run", "charlm", "--tier", "smoke", "--data", tmp_path / "pipe", "--out", tmp_path / "out"]
    assert f"{tmp_path / 'pipe'}: is a pipe or device" in _refused(capsys, *words)
    assert not (tmp_path / "out").exists()


def test_snapshots_as_often_as_nobody_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SYNTHGRAD_SNAPSHOT_S", "often")
    line = _refused(capsys, *COMPARE, "--out", tmp_path / "out")
    assert "SYNTHGRAD_SNAPSHOT_S=often: expected seconds" in line
    assert not (tmp_path / "out").exists()


def test_folder_that_another_program_writes_to(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with locked(tmp_path):
        line = _refused(capsys, *COMPARE, "--out", tmp_path)
    assert f"--out {tmp_path}: is in use by process {os.getpid()}, since " in line
    assert (tmp_path / "results.jsonl").read_bytes() == b""


@pytest.mark.parametrize("what", ["records", "page"])
def test_disk_that_is_full_at_the_end(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(*((store, "_write_all") if what == "records" else (pages, "write_whole")), full)
    assert call(*COMPARE, "--out", tmp_path) == 1
    shown = capsys.readouterr()
    (line,) = shown.err.splitlines()
    if what == "records":
        assert line.startswith(
            f"synthgrad: error: {tmp_path / 'results.jsonl'}: a record cannot be written (No "
        )
        assert "--resume" in line
        assert (tmp_path / "results.jsonl").read_bytes() == b""
        assert not list(tmp_path.glob("*.html*"))
    else:
        assert line.startswith(f"synthgrad: warning: {tmp_path / 'report.html'}: cannot be written (No space")
        assert "cdni" in shown.out
        assert len((tmp_path / "results.jsonl").read_text().splitlines()) == 2
    assert not list(tmp_path.glob("*.partial"))


# Other commands


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("train", ["train", "compare, run, bench, plan, store, report, list"]),
        ("--nonsense", ["--nonsense"]),
        ("run", ["NAME"]),
        ("run nothing", ["nothing", "budgets", "dni_search"]),
        ("run dni_search --tier full", ["dni_search", "full", "smoke", "quick"]),
        ("run compare --tier slow", ["slow", "smoke, quick, full"]),
        ("bench", ["NAME"]),
        ("bench nothing", ["nothing", "step"]),
        ("bench step --methods dnj", ["dnj", "cdni"]),
        ("bench step --rounds 0", ["--rounds"]),
        ("bench step --width 0", ["--width", "at least 1"]),
        ("bench step --width 8,8", ["--width", "different"]),
        ("bench step --layers 1", ["--layers", "at least 2"]),
        ("bench step --batch-size 20000", ["batch size 20000", "2 to 10000"]),
        ("bench step --device tpu", ["tpu", "cpu, cuda or auto"]),
        ("list surplus", ["surplus"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "says",
)
def test_command_is_refused(
    arguments: str,
    words: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    out = ["--out", tmp_path / "out", "--quiet"] if arguments.startswith(("run ", "bench ")) else []
    line = _refused(capsys, *arguments.split(), *out)
    assert not [word for word in words if word not in line], line
    assert not list(tmp_path.iterdir())


def test_no_command_shows_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert call() == 2
    shown = capsys.readouterr()
    assert "Usage: synthgrad" in shown.out + shown.err


@pytest.mark.parametrize("place", ["before", "after"])
def test_debug_shows_where(place: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [*COMPARE, "--lr", "nan", "--out", tmp_path / "out"]
    assert call(*(["--debug", *words] if place == "before" else [*words, "--debug"])) == 2
    shown = capsys.readouterr().err
    assert "Traceback" in shown
    assert shown.splitlines()[-1].startswith("synthgrad: error: learning rate nan")
