"""``synthgrad compare --arch gpt``: what it writes, and what it refuses in one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.lab.cli.helpers import call, records_in

pytestmark = pytest.mark.usefixtures("offline")

GPT = [
    *("compare", "--arch", "gpt", "--tier", "smoke", "--steps", "4", "--batch-size", "4", "--layers", "2"),
    *("--width", "16", "--heads", "2", "--context", "8", "--device", "cpu", "--threads", "1", "--quiet"),
]


def test_it_trains_on_a_text_of_ones_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = tmp_path / "my.txt"
    text.write_text("the quick brown fox jumps over the lazy dog\n" * 40)
    updates = ("--optimizer", "muon", "--delay", 2, "--error-feedback", "--accumulate", 2)
    rule = ("--blocks", 0, "--weight", 0.25, "--share", 0.5, "--tokens", "bytes")
    assert call(*GPT, "--data", text, *updates, *rule, "--out", tmp_path / "out") == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    assert {"character,", "validation", "rate"} <= set(shown.out.split())  # headings, over several lines
    records = records_in(tmp_path / "out")
    assert [r["method"] for r in records] == ["backprop", "delayed", "local_loss", "late_correction"]
    assert {r["cell"]["data"] for r in records} == {str(text)}
    assert {r["config"]["optimizer"] for r in records} == {"Muon"}
    assert {r["config"]["accumulate"] for r in records} == {2}
    assert [r["config"].get("error_feedback", False) for r in records] == [False, True, True, True]
    assert records[3]["config"]["rule"]["weight"] == 0.25
    assert records[3]["config"]["rule"]["share"] == 0.5
    assert records[3]["config"]["rule"]["delay"] == 2
    assert records[2]["config"]["rule"]["blocks"] == 0


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("--context 44982", ["context of 44982", "1 to 44981"]),
        ("--tokens bpe --vocabulary 60000", ["vocabulary of 60000", "at most"]),
        ("--tokens bpe --vocabulary 10", ["vocabulary of 10", "at least 256"]),
        ("--vocabulary 300", ["vocabulary of 300", "characters"]),
        ("--tokens lines", ["tokens 'lines'", "characters, bytes, bpe"]),
        ("--accumulate 0", ["accumulate 0", "at least 1"]),
        ("--accumulate 5", ["updates of 5 batches", "at most 4"]),
        ("--layers 4 --modules 9", ["9 modules of 4 blocks", "2 to 4"]),
        ("--data mnist", ["'mnist' is not a text", "shakespeare", "UTF-8"]),
        ("--data mine:data", ["'mine:data' is not a text"]),
        ("--data nowhere.txt", ["nowhere.txt", "nor a file"]),
        ("--optimizer sgd", ["optimizer 'sgd'", "adam, adamw, nadam, muon"]),
        ("--methods delayed --delay 3 --accumulate 2 --versions 2", ["versions=2", "accumulate=3"]),
        ("--versions 3", ["versions 3", "2 (2BW)"]),
        ("--delay -1", ["delay -1", "at least 0"]),
        ("--weight nan", ["weight nan", "finite"]),
        ("--weight -0.5", ["weight -0.5", "at least 0"]),
        ("--share 0 --methods late_correction", ["share 0", "above 0 up to 1", "local_loss"]),
        ("--unembedding other", ["unembedding 'other'", "own, network"]),
        ("--share 1.5", ["share 1.5", "above 0 up to 1"]),
        ("--heads 3", ["width 16 with 3 heads"]),
        ("--engine layer-parallel", ["engine 'layer-parallel'", "in-process, plain, stages"]),
        ("--engine plain --methods delayed", ["'delayed'", "plain loop", "in-process"]),
        ("--engine plain --methods interlocked", ["'interlocked'", "plain engine", "--engine in-process"]),
        ("--methods stale", ["method 'stale' is not for --arch gpt", "local_loss"]),
        ("--methods cdni_unlock", ["method 'cdni_unlock' is not for --arch gpt"]),
        ("--at block1 --modules 2", ["--at", "--modules"]),
        ("--at block9", ["block9", "no submodule"]),
        ("--update-prob 0.5", ["--update-prob is not for --arch gpt"]),
        ("--compile", ["--compile is not for --arch gpt"]),
        ("--model a:b", ["--model is not for --arch gpt"]),
        ("--free-running", ["free_running", "'in-process'", "--engine stages"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "says",
)
def test_it_refuses(given: str, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(*GPT, *given.split(), "--out", tmp_path / "out") == 2
    shown = capsys.readouterr()
    (line,) = shown.err.splitlines()
    assert line.startswith("synthgrad: error: ")
    assert "is a bug" not in line
    assert not [word for word in words if word not in line], line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("--data shakespeare", ["'shakespeare' is a text", "--arch gpt"]),
        ("--data my.txt", ["'my.txt' is a text", "--arch gpt"]),
        ("--data text:mine", ["'text:mine' is a text"]),
        ("--arch cnn --context 8", ["--context is for --arch gpt"]),
        ("--tied", ["--tied is for --arch gpt"]),
        ("--free-running --engine stages", ["--free-running is for --arch gpt"]),
        ("--engine layer-parallel --accumulate 2", ["layer-parallel", "in-process"]),
        (
            "--engine layer-parallel --methods late_correction",
            ["'late_correction'", "layer-parallel engine", "in-process or stages"],
        ),
        ("--engine plain --error-feedback", ["error feedback", "in-process or stages"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "says",
)
def test_other_networks_refuse_what_is_a_gpts(
    given: str, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = ("--steps", "3", "--device", "cpu", "--threads", "1", "--methods", "cdni", "--quiet")
    assert call("compare", *small, *given.split(), "--out", tmp_path / "out") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert not [word for word in words if word not in line], line
    assert not (tmp_path / "out").exists()
