"""The reader's checks: what a part of a record may hold, and how much is said of what was left out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from synthgrad.lab.records import FILE, read
from synthgrad.lab.records.shape import odd_part

GOOD: dict[str, Any] = {
    "schema": 1,
    "experiment": "compare",
    "tier": "quick",
    "method": "cdni",
    "seed": 0,
    "cell": {"data": "mnist", "layers": 4, "at": ["a", "b"], "width": None, "compiled": False},
    "steps": 10,
    "batch_size": 256,
    "metrics": {"test_error_pct": 1.5, "time_to_target_s": None, "data_sha256": "c6"},
    "time": {"step_ms_median": 1},
    "curve": [{"step": 1, "train_loss": None, "quality": {"a": {"cosine": 0.5, "relative_error": None}}}],
    "status": "ok",
    "error": None,
    "config": {"lr": 3e-4, "milestones": [0.6, 0.8], "rule": {"hidden": [8, 8], "norm": True}},
    "env": {"threads": 2, "dirty": False},
    "graph": {
        "engine": "plain",
        "modules": [{"name": "a", "ends": ["a"], "inputs": [], "num_parameters": 3}],
        "interfaces": [{"name": "a", "shape": [3], "rule": "R()"}],
    },
    "estimate": {"ratio_to_backprop": 1.5},
}


def test_a_whole_record_passes() -> None:
    assert odd_part(GOOD) is None


@pytest.mark.parametrize("name", [name for name in GOOD if name != "schema"])
def test_every_part_may_be_missing(name: str) -> None:
    assert odd_part({k: v for k, v in GOOD.items() if k != name}) is None


@pytest.mark.parametrize(
    "changes",
    [
        {"graph": None, "estimate": None},
        {"seed": None},
        {"config": {"rule": "linear M"}},
        {"something": [{"else": [1]}]},
    ],
)
def test_these_pass_as_well(changes: dict[str, Any]) -> None:
    assert odd_part(GOOD | changes) is None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("experiment", 3),
        ("method", None),
        ("method", ["dni"]),
        ("status", {}),
        ("tier", 1),
        ("error", ["x"]),
        ("seed", "0"),
        ("seed", 0.5),
        ("seed", True),
        ("steps", [10]),
        ("batch_size", "many"),
        ("cell", []),
        ("cell", {"layers": {"a": 1}}),
        ("cell", {"at": [["a"]]}),
        ("metrics", None),
        ("metrics", {"test_error_pct": [1.0]}),
        ("metrics", {"test_error_pct": {}}),
        ("time", {"train_s": {}}),
        ("curve", {}),
        ("curve", [1]),
        ("curve", [{"step": [1]}]),
        ("curve", [{"quality": 3}]),
        ("curve", [{"quality": {"a": 0.5}}]),
        ("curve", [{"quality": {"a": {"cosine": "high"}}}]),
        ("config", "x"),
        ("config", {"rule": [1]}),
        ("config", {"deep": [[[[[[[[1]]]]]]]]}),
        ("env", {"threads": {}}),
        ("graph", []),
        ("graph", {"modules": {}}),
        ("graph", {"modules": [1]}),
        ("graph", {"modules": [{"ends": [[]]}]}),
        ("estimate", 1.5),
        ("estimate", {"ratio_to_backprop": "1.5"}),
    ],
)
def test_another_kind_is_named_and_left_out(name: str, value: Any, tmp_path: Path) -> None:
    assert odd_part(GOOD | {name: value}) == name
    path = tmp_path / FILE
    path.write_text(json.dumps(GOOD | {name: value}) + "\n" + json.dumps(GOOD) + "\n")
    records, (problem,) = read(path)
    assert records == [GOOD]
    assert problem == f"{path}, line 1: has no proper '{name}', left out"


@pytest.mark.parametrize("num", [10, 11, 5000])
def test_of_many_problems_ten_are_named(num: int, tmp_path: Path) -> None:
    path = tmp_path / FILE
    path.write_text("garbage\n" * num + json.dumps(GOOD) + "\n")
    records, problems = read(path)
    assert records == [GOOD]
    assert [f"line {k}:" in p for k, p in enumerate(problems[:10], 1)] == [True] * 10
    assert problems[10:] == ([f"{path}: and {num - 10} more lines, left out"] if num > 10 else [])


def test_a_folder_in_place_of_the_file_is_a_problem(tmp_path: Path) -> None:
    (tmp_path / FILE).mkdir()
    records, (problem,) = read(tmp_path / FILE)
    assert (records, "cannot be read" in problem) == ([], True)


def test_half_a_character_is_left_out_and_a_whole_one_kept(tmp_path: Path) -> None:
    path = tmp_path / FILE
    lines = [json.dumps(GOOD | {"error": error}) for error in ("\ud800", "\U0001f600")]
    path.write_text("\n".join(lines))
    records, problems = read(path)
    assert ([r["error"] for r in records], len(problems)) == (["\U0001f600"], 1)


def test_a_byte_order_mark_is_no_damage(tmp_path: Path) -> None:
    path = tmp_path / FILE
    path.write_text(json.dumps(GOOD), encoding="utf-8-sig")
    assert read(path) == ([GOOD], [])


def test_deep_nesting_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / FILE
    path.write_text("[" * 200_000 + "\n" + json.dumps(GOOD))
    assert len(read(path)[1]) == 1
