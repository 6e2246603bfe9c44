"""``bench``: what every benchmark prints, writes and returns, and what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from synthgrad.lab.bench.declarations import BENCHMARKS
from synthgrad.lab.bench.layer_parallel import LayerParallelBench
from synthgrad.lab.bench.step import StepBench
from synthgrad.lab.training.load import Load
from tests.lab.cli.helpers import RECORD_KEYS, call, records_in

pytestmark = pytest.mark.usefixtures("offline")

STEP = ["bench", "step", "--tier", "smoke", "--device", "cpu", "--threads", "1", "--quiet"]
SMALL_STEP = [*STEP, "--width", "16", "--rounds", "2", "--methods", "cdni"]
MEMORY = [
    *("bench", "memory", "--tier", "smoke", "--device", "cpu", "--threads", "1", "--quiet"),
    *("--width", "16", "--batch-size", "32", "--rounds", "1"),
]


@pytest.fixture(autouse=True)
def idle_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the machine for idle, though other tests run beside."""
    monkeypatch.setattr(Load, "so_far", lambda self: 0.0)


def test_step_and_time_to_an_accuracy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(*STEP, "--methods", "cdni", "--learn", "--out", tmp_path) == 0
    shown = capsys.readouterr()
    assert "bench/step" in shown.out
    assert shown.err == ""
    records = records_in(tmp_path)
    cases = [(r["method"], r["cell"]["engine"], r["cell"]["update_prob"]) for r in records]
    assert cases == [
        ("backprop", "hand-written loop", 1.0),
        ("cdni", "in-process", 1.0),
        ("cdni", "plain", 1.0),
        ("cdni", "in-process", 0.2),
    ]
    for record in records:
        assert (record["tier"], record["status"], record["error"]) == ("smoke", "ok", None)
        assert record["metrics"]["target_accuracy_pct"] == 92.0
        assert 10 < record["metrics"]["accuracy_pct"] < 100
        reached = record["metrics"]["time_to_accuracy_s"]
        assert reached or record["metrics"]["accuracy_pct"] < 92


def test_without_learn_only_steps_are_timed(tmp_path: Path) -> None:
    assert call(*STEP, "--methods", "no_bprop", "--out", tmp_path) == 0
    assert not [k for r in records_in(tmp_path) for k in r["metrics"] if "accuracy" in k]


def test_progress_is_said_on_standard_error_unless_quiet(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(*STEP[:-1], "--methods", "backprop", "--out", tmp_path) == 0
    assert "step: 3 layers × 32, batch 32, 1 threads (1 of 1)" in capsys.readouterr().err


def test_other_sizes_are_custom(tmp_path: Path) -> None:
    assert call(*STEP, "--methods", "backprop", "--width", "8", "--out", tmp_path) == 0
    assert [(r["tier"], r["cell"]["width"]) for r in records_in(tmp_path)] == [("custom", 8)]


def test_resume_goes_on_with_what_is_left(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep = [*STEP[:-1], "--methods", "backprop", "--width", "8", "--out", tmp_path]
    assert call(*sweep, "--layers", "2") == 0
    before = (tmp_path / "results.jsonl").read_bytes()
    assert call(*sweep, "--layers", "2,4", "--resume") == 0
    assert (tmp_path / "results.jsonl").read_bytes().startswith(before)
    assert [r["cell"]["layers"] for r in records_in(tmp_path)] == [2, 4]
    assert capsys.readouterr().err.count("done before, skipped") == 1


@pytest.mark.slow(reason="every line is measured in a process with a PyTorch of its own")
def test_memory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(*MEMORY, "--layers", "3", "--methods", "in_process", "--out", tmp_path) == 0
    shown = capsys.readouterr()
    assert "bench/memory" in shown.out
    assert shown.err == ""
    records = records_in(tmp_path)
    assert [r["method"] for r in records] == ["backprop", "in_process"]
    for record in records:
        assert (record["status"], record["experiment"]) == ("ok", "bench/memory")
        assert {"width": 16, "layers": 3, "batch_size": 32}.items() <= record["cell"].items()
        assert record["metrics"]["saved_bytes_peak"] > 0
        assert record["metrics"]["ratio_to_backprop"] > 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["report.html", "results.jsonl"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("nothing", ["'nothing' is unknown", "accepted: step, memory, unroll"]),
        ("step --jobs 2", ["No such option", "--jobs"]),
        ("memory --learn", ["No such option", "--learn"]),
        ("step --link rtt_ms=5", ["No such option", "--link"]),
        ("step --modes jit", ["--modes 'jit'", "eager, compiled"]),
        ("step --modes eager,jit", ["--modes 'jit'", "eager, compiled"]),
        ("step --arch lstm", ["--arch 'lstm'", "fcn, cnn"]),
        ("step --precision half", ["--precision 'half'", "float32, bfloat16"]),
        ("step --tier slow", ["slow", "smoke", "quick", "full"]),
        ("faults --tier full", ["full", "accepted: smoke, quick"]),
        ("step --rounds 0", ["--rounds"]),
        ("step --batch-size 1", ["--batch-size", "at least 2"]),
        ("memory --methods cdni", ["cdni", "backprop", "checkpointing", "in_process"]),
        ("memory --batch-size 20000", ["batch size 20000", "2 to 10000"]),
        ("memory --unroll 5", ["bench memory has no --unroll"]),
        ("pipeline --device cuda", ["--device cuda", "bench pipeline runs on the CPU", "auto or cpu"]),
        ("pipeline --link rtt=5", ["unknown key 'rtt'", "rtt_ms", "mbit_s"]),
        ("pipeline --link rtt_ms=fast", ["rtt_ms='fast'", "rtt_ms=50,mbit_s=1000"]),
        ("pipeline --stages 9 --layers 4", ["9 stages of 4 layers", "a hidden layer for each"]),
        ("pipeline --stages 1", ["--stages", "at least 2"]),
        ("pipeline --methods dni", ["dni", "zero_bubble", "stages_sparse"]),
        ("gpt --heads 3", ["width 128 with 3 heads", "multiple of 6"]),
        ("gpt --modules 5", ["5 modules of 4 blocks", "1 to 4"]),
        ("gpt --modules 1", ["--modules", "at least 2"]),
        ("gpt --layers 1", ["--layers", "at least 2"]),
        ("gpt --context 0", ["--context", "at least 1"]),
        ("gpt --vocabulary 1", ["--vocabulary", "at least 2"]),
        ("gpt --accumulate 0", ["--accumulate", "at least 1"]),
        ("gpt --accumulate 2", ["--accumulate 2 with 4 modules", "2BW", "--accumulate 1, or 3 or more"]),
        ("gpt --accumulate 2 --methods cdni", ["updates of several batches", "backprop and delayed"]),
        ("gpt --methods stale", ["stale", "backprop", "late_correction"]),
        ("gpt --precision half", ["--precision 'half'", "float32, bfloat16"]),
        (
            "token-head --vocabulary 1024",
            ["--vocabulary 1024", "2048 tokens of 768 features", "such as 1025"],
        ),
        ("token-head --chunks 0", ["--chunks", "at least 1"]),
        ("token-head --chunks 2049", ["--chunks 2049", "at most 2048"]),
        ("token-head --width 50", ["width 50 with 12 heads", "multiple of 24"]),
        ("token-head --methods local_loss", ["local_loss", "whole_logits, token_head"]),
        ("networks --arch VGG", ["--arch 'VGG'", "MLP", "BERT"]),
        ("step --resume", ["--resume is given without --out"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "says",
)
def test_bench_refuses(
    arguments: str,
    words: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    out = [] if "--resume" in arguments else ["--out", "out"]
    assert call("bench", *arguments.split(), *out) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("synthgrad: error: ")
    assert not [word for word in words if word not in line], line
    assert list(tmp_path.iterdir()) == []


def test_an_emulated_link_needs_root(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    link = ("--link", "rtt_ms=50,mbit_s=1000", "--device", "cpu")
    assert call("bench", "pipeline", *link, "--out", tmp_path / "out") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("synthgrad: error: an emulated link needs Linux, root")
    assert line.endswith("leave out --link")
    assert list(tmp_path.iterdir()) == []


def test_bench_step(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(*SMALL_STEP, "--out", tmp_path) == 0
    records = records_in(tmp_path)
    assert {r["method"] for r in records} == {"backprop", "cdni"}
    for record in records:
        assert set(record) >= RECORD_KEYS
        assert (record["experiment"], record["status"], record["schema"]) == ("bench/step", "ok", 1)
        assert {"width", "layers", "batch_size", "threads", "compiled"} <= set(record["cell"])
        assert record["metrics"]["step_ms_median"] > 0
        assert record["metrics"]["ratio_to_backprop"] > 0
    assert "bench/step" in capsys.readouterr().out


def test_bench_keeps_a_failed_peer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any) -> Any:
        raise RuntimeError("no\nsuch step")

    monkeypatch.setattr(StepBench, "step", fail)
    assert call(*SMALL_STEP, "--out", tmp_path) == 1
    records = records_in(tmp_path)
    assert {r["status"] for r in records} == {"failed"}
    assert {r["error"] for r in records} == {"RuntimeError: no"}


def test_figures_that_were_taken_under_load_are_said_to_be_unreliable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Load, "so_far", lambda self: 1.5)
    assert call(*SMALL_STEP, "--out", tmp_path) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("synthgrad: warning: other programs kept up to 1.5 processors busy")
    assert {r["env"]["other_load"] for r in records_in(tmp_path)} == {1.5}


# Help


def shown(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert call("bench", *arguments, "--help") == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("name", BENCHMARKS)
def test_the_help_has_the_benchmarks_options_and_no_others(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    text, declared = shown(capsys, name), BENCHMARKS[name]
    flags = {declared.flag(option) for option in declared.options}
    others = {d.flag(option) for d in BENCHMARKS.values() for option in d.options} - flags
    listed = {word for line in text.splitlines() for word in line.split()[:1] if line.startswith("  --")}
    assert flags | {"--out", "--tier", "--seeds", "--device", "--threads", "--resume"} <= listed
    assert not listed & {*others, "--jobs"}
    assert f"synthgrad bench {name}" in text.partition("Examples:")[2]


def test_the_help_has_the_values_of_every_tier(capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(capsys, "step")
    fcn, cnn = text.partition("--arch cnn:")[::2]
    assert [line.split() for line in fcn.splitlines() if line.startswith("    --width")] == [
        ["--width", "32", "64,256", "64,256,1024"]
    ]
    assert [line.split() for line in cnn.splitlines() if line.startswith("    --layers")] == [
        ["--layers", "3", "3,4", "3,4"]
    ]
    assert "all but layer_parallel_general; all in the full tier" in " ".join(
        shown(capsys, "layer-parallel").split()
    )


def test_examples_of_the_help_are_understood(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from synthgrad.lab.bench import base
    from synthgrad.lab.bench.pipeline import bench as pipeline

    made: list[Any] = []
    monkeypatch.setattr(pipeline, "unavailable_reason", lambda: None)
    monkeypatch.setattr(LayerParallelBench, "check", lambda *args: None)  # MNIST may not be at hand
    monkeypatch.setattr(
        base, "_measured", lambda settings, *args, **options: made.append(settings) or iter(())
    )
    for name, declared in BENCHMARKS.items():
        for example in declared.examples:
            assert call("bench", name, *example.split(), "--out", tmp_path) == 0, (name, example)
    assert len(made) == sum(len(declared.examples) for declared in BENCHMARKS.values())
    assert all(made)
