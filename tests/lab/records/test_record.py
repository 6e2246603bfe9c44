"""Records as typed values: what a part may hold, what survives, and how much is said of what was left out."""

from __future__ import annotations

import json
import math
import pickle
from pathlib import Path
from typing import Any

import pytest

from synthgrad.lab.records import FILE, Cell, Metrics, OddPart, Record, append, finished, identity, read

RESULTS = Path(__file__).parents[3] / "results"

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
    assert Record.of(GOOD).line() == GOOD


@pytest.mark.parametrize("name", [name for name in GOOD if name != "schema"])
def test_every_part_may_be_missing(name: str) -> None:
    line = {k: v for k, v in GOOD.items() if k != name}
    assert Record.of(line).line() == line


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
    assert Record.of(GOOD | changes).line() == GOOD | changes


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
        ("curve", [None]),
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
    with pytest.raises(OddPart, match=f"^{name}$"):
        Record.of(GOOD | {name: value})
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


def test_the_parts_are_typed() -> None:
    record = Record.of(GOOD)
    assert (record.experiment, record.method, record.seed, record.status) == ("compare", "cdni", 0, "ok")
    assert (record.cell.data, record.cell.layers, record.cell.at, record.cell.compiled) == (
        *("mnist", 4, ("a", "b")),
        False,
    )
    assert (record.metrics.test_error_pct, record.metrics.time_to_target_s) == (1.5, None)
    assert (record.config.lr, record.config.rule["hidden"], record.config.rule_text) == (3e-4, [8, 8], "")
    assert (record.env.threads, record.env.dirty, record.env.device) == (2, False, None)
    assert record.curve[0].step == 1
    assert record.curve[0].quality == {"a": {"cosine": 0.5, "relative_error": None}}
    assert record.graph is not None
    assert (record.graph.modules[0].ends, record.graph.interfaces[0].rule) == (("a",), "R()")
    assert record.estimate is not None
    assert record.estimate.ratio_to_backprop == 1.5


@pytest.mark.parametrize("value", ["four", True, math.inf, 10**400, [4.0]])
def test_what_is_no_number_counts_as_none(value: Any) -> None:
    assert Cell({"unroll": value}).unroll is None


def test_unknown_keys_survive_at_every_depth(tmp_path: Path) -> None:
    line = GOOD | {"later": {"x": [1]}, "cell": {"colour": "red"}, "env": {"gpu": None}, "graph": None}
    (tmp_path / FILE).write_text(json.dumps(line) + "\n")
    ((record,), _) = read(tmp_path / FILE)
    append(tmp_path / "again", record)
    assert read(tmp_path / "again")[0][0].line() == line
    assert record.more == {"later": {"x": [1]}}
    assert list(record.line()) == list(line)


def test_a_new_record_has_every_key_of_a_line_and_what_was_said_besides(tmp_path: Path) -> None:
    record = Record(
        experiment="mine", method="dni", seed=3, cell=Cell({"layers": 2}), metrics=Metrics({"x": 1}), round=2
    )
    append(tmp_path / FILE, record)
    ((found,), problems) = read(tmp_path / FILE)
    assert problems == []
    assert found.line() == {
        **{
            "schema": 1,
            "experiment": "mine",
            "tier": None,
            "method": "dni",
            "seed": 3,
            "cell": {"layers": 2},
        },
        **{"steps": None, "batch_size": None, "metrics": {"x": 1}, "time": {}, "curve": [], "status": "ok"},
        **{"error": None, "config": {}, "env": {}, "round": 2},
    }
    assert finished([found]) == {identity(record)}


@pytest.mark.parametrize("path", sorted(RESULTS.rglob(FILE)), ids=lambda path: path.parents[1].name)
def test_committed_lines_are_decoded_and_encoded_to_equal_values(path: Path, tmp_path: Path) -> None:
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    records, problems = read(path)
    assert not [problem for problem in problems if "left out" in problem]
    assert [r.line() for r in records] == [{k: v for k, v in line.items() if k != "sum"} for line in lines]
    append(tmp_path / FILE, records[-1])
    assert read(tmp_path / FILE)[0] == [records[-1]]


def test_a_record_crosses_to_another_process() -> None:
    """A run side by side with others, or on stages, sends its record; one that failed has empty parts."""
    record = Record(experiment="compare", method="cdni", status="failed", error="no memory")
    assert pickle.loads(pickle.dumps(record)).line() == record.line()
