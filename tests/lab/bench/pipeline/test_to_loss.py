"""``--losses``: which run belongs to which line, and the time to a loss."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from synthgrad.core import ConfigError
from synthgrad.lab.bench.declarations import PIPELINE
from synthgrad.lab.bench.pipeline.bench import PipelineBench
from synthgrad.lab.bench.pipeline.cases import Case
from synthgrad.lab.bench.pipeline.network import Size
from synthgrad.lab.bench.pipeline.to_loss import loss_runs, steady

SIZE = Size(*(128, 4, 32, 4, 1, 0), arch="gpt", heads=4, context=64, precision="bfloat16", optimizer="muon")
BACKPROP, OURS = Case("backprop"), Case("stages_8bits", observe_prob=1.0, wire_dtype="8 bits")
LOCAL = Case("stages_local", observe_prob=1.0, rule="local_loss")
ENCODED = Case("1f1b_8bits", 8, wire_dtype="8 bits")
CORRECTED = Case("stages_corrected_8bits", observe_prob=1.0, wire_dtype="8 bits", rule="late_correction")
LATE = Case("stages_late_8bits", 16, observe_prob=1.0, wire_dtype="8 bits", rule="delayed")


def run(
    method: str, rule: dict[str, Any] | None, losses: list[float], *, seed: int = 0, **config: Any
) -> dict[str, Any]:
    """Return the line of a run that is evaluated every hundred updates."""
    size = config.get("accumulate", 1)
    curve = [{"step": 100 * k * size, "val_bits_per_char": loss} for k, loss in enumerate(losses, 1)]
    cell = {"arch": "gpt", "layers": 4, "width": 128, "heads": 4, "context": 64}
    return {
        **{"schema": 1, "experiment": "gpt_codecs", "tier": "quick", "method": method, "seed": seed},
        **{"cell": {**cell, "modules": None if rule is None else 4, "engine": "in-process"}},
        **{"steps": 100 * len(losses) * size, "batch_size": 32 // size, "metrics": {}, "time": {}},
        **{"curve": curve, "status": "ok", "error": None, "env": {}},
        "config": {"optimizer": "Muon", "precision": "bfloat16", "rule": rule or {}, **config},
    }


RUNS = [
    run("backprop", None, [3.0, 2.0]),
    run("backprop", None, [3.2, 2.4], seed=1),
    run("delayed", {"codec": "8bits"}, [3.0, 2.1]),
    run("delayed", {"codec": "8bits", "delay": 2}, [3.0, 2.5, 2.2], accumulate=8),
    run("local_loss", {"blocks": 0}, [3.5, 2.75]),
    run("local_loss", {}, [1.0, 1.0]),  # with a private block
    run("cdni", {"codec": "8bits", "delay": 1, "message_codec": "largest:0.0625"}, [1.0]),
    run("cdni", {"codec": "8bits", "delay": 1}, [3.0, 2.0]),
    run("late_correction", {"blocks": 0, "delay": 4, "weight": None, "codec": "8bits"}, [3.0, 2.0]),
    run("late_correction", {"blocks": 0, "delay": 4, "weight": 0.5, "codec": "8bits"}, [1.0, 1.0]),
    run("late_correction", {"blocks": 0, "delay": 16, "weight": None, "codec": "8bits"}, [1.0, 1.0]),
]


def written(folder: Path, runs: list[dict[str, Any]]) -> str:
    (folder / "results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in runs))
    return str(folder)


def updates(folder: str, target: float | None, *cases: Case) -> list[float | None]:
    found = loss_runs(folder, cases, SIZE, target)
    return [found.times(case, {"step_ms_median": 20.0}).get("steps_to_loss") for case in cases]


def test_updates_are_counted_between_evaluations(tmp_path: Path) -> None:
    folder = written(tmp_path, RUNS)
    # Backpropagation comes to 2.5 bits at 150, and at 187.5 with the other seed.
    assert updates(folder, 2.5, BACKPROP, Case("1f1b", 4)) == [pytest.approx(168.75)] * 2
    assert updates(folder, 2.55, ENCODED, OURS, LATE) == [
        pytest.approx(150),
        pytest.approx(145),
        pytest.approx(190),
    ]
    assert updates(folder, 2.5, LOCAL, CORRECTED) == [None, pytest.approx(150)]
    assert updates(folder, 3.5, LOCAL) == [100]


def test_the_loss_is_one_that_all_reach(tmp_path: Path) -> None:
    found = loss_runs(written(tmp_path, RUNS), [BACKPROP, LOCAL], SIZE, None)
    assert found.target == 2.75
    assert found.times(LOCAL, {"step_ms_median": 30.0, "steady_step_ms": 20.0}) == {
        "target_val_bits": 2.75,
        "num_loss_runs": 1,
        "steps_to_loss": pytest.approx(200),
        "time_to_loss_s": pytest.approx(4.0),
    }
    assert found.times(BACKPROP, {"step_ms_median": 30.0})["time_to_loss_s"] == pytest.approx(
        30e-3 * (125 + 156.25) / 2
    )
    assert found.times(OURS, {"step_ms_median": 1.0}) == {}


def test_a_run_that_misses_the_loss_or_diverged_leaves_no_time(tmp_path: Path) -> None:
    diverged = {**run("backprop", None, [3.0], seed=2), "status": "diverged", "steps": 200}
    folder = written(tmp_path, [*RUNS, diverged])
    assert updates(folder, 2.5, BACKPROP) == [None]


def test_a_longer_run_of_the_same_method_is_left_out(tmp_path: Path) -> None:
    folder = written(tmp_path, [run("backprop", None, [3.0] * 5 + [2.0]), RUNS[0]])
    assert updates(folder, 2.5, BACKPROP) == [pytest.approx(150)]


def test_of_several_settings_the_best_counts(tmp_path: Path) -> None:
    folder = written(tmp_path, [run("backprop", None, [3.4, 3.2], lr=0.1), RUNS[0], RUNS[1]])
    assert updates(folder, 2.5, BACKPROP) == [pytest.approx(168.75)]


def test_runs_of_several_texts_are_refused(tmp_path: Path) -> None:
    other = json.loads(json.dumps(RUNS[0]))
    other["cell"]["data"] = "ptb"
    with pytest.raises(ConfigError, match="its runs are of several texts .*ptb.* whose losses cannot be"):
        loss_runs(written(tmp_path, [*RUNS, other]), [BACKPROP], SIZE, None)


def test_runs_of_another_network_are_none(tmp_path: Path) -> None:
    other = json.loads(json.dumps(RUNS[0]))
    other["cell"]["width"] = 64
    with pytest.raises(ConfigError, match=r"none of its 1 records is of a GPT of 4 blocks × 128, 4 heads"):
        loss_runs(written(tmp_path, [other]), [BACKPROP], SIZE, None)
    with pytest.raises(ConfigError, match="expected a folder with the records of runs"):
        loss_runs(str(tmp_path / "nowhere"), [BACKPROP], SIZE, None)


def test_steady_rounds_are_three_in_a_row() -> None:
    assert steady([9.0, 10.0, 10.1, 10.05]) == (10.05, 1.0)
    assert steady([10.0, 20.0, 10.0]) == (10.0, 100.0)
    assert steady([10.0, 10.0]) is None


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"target_bits": 2.0}, "--target-bits 2 without --losses"),
        ({"losses": "x"}, "--losses is for --arch gpt"),
        ({"losses": "x", "target_bits": 0.0, "arch": "gpt"}, "--target-bits 0: expected bits"),
        ({"losses": "nowhere", "arch": "gpt"}, "--losses nowhere: expected a folder"),
    ],
)
def test_losses_are_refused_before_anything_is_measured(changes: dict[str, Any], match: str) -> None:
    tiers = PIPELINE.networks["gpt"] if changes.get("arch") == "gpt" else PIPELINE.tiers
    scope: Any = tiers["smoke"]
    with pytest.raises(ConfigError, match=match):
        PipelineBench().settings(replace(scope, **changes))
