from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from synthgrad.core import ConfigError
from synthgrad.planner.costs import StageCost
from synthgrad.planner.table import CostTable, ModuleCost

FULL = StageCost(
    forward_s=0.001_2,
    backward_s=0.002_3,
    optimizer_s=0.000_4,
    output_bytes=4096,
    credit_s=0.000_05,
    observe_s=0.000_06,
    local_s=0.000_07,
    held_bytes=8192,
    parameter_bytes=1024,
    backward_input_s=0.001_1,
    forward_call_s=0.000_01,
    backward_call_s=0.000_02,
)


def table(*costs: StageCost) -> CostTable:
    names = [*(f"layer{k + 1}" for k in range(len(costs) - 1)), "output"]
    return CostTable(tuple(map(ModuleCost, names, costs)), batch_size=32, model="toy")


def rows() -> dict[str, Any]:
    """A file's content, to be damaged."""
    row = {"forward_ms": 1.0, "backward_ms": 2.0, "output_bytes": 64}
    return {"batch_size": 8, "modules": [{"name": name, **row} for name in ("a", "b", "c")]}


def test_a_file_holds_milliseconds_and_comes_back_as_it_was(tmp_path: Path) -> None:
    whole = table(FULL, StageCost(0.1 + 0.2, 1 / 3, output_bytes=7), FULL)
    path = tmp_path / "costs.json"
    whole.write(path)
    given = json.loads(path.read_text())
    assert (given["batch_size"], given["model"], len(given["modules"])) == (32, "toy", 3)
    assert given["modules"][0] == {
        "name": "layer1",
        "forward_ms": 1.2,
        "backward_ms": 2.3,
        "optimizer_ms": 0.4,
        "output_bytes": 4096,
        "credit_ms": 0.05,
        "observe_ms": 0.06,
        "local_ms": 0.07,
        "held_bytes": 8192,
        "parameter_bytes": 1024,
        "backward_input_ms": 1.1,
        "forward_call_ms": 0.01,
        "backward_call_ms": 0.02,
    }
    read = CostTable.read(path)
    assert read.modules[0] == whole.modules[0]
    assert read.modules[1].cost.backward_s == pytest.approx(1 / 3, rel=1e-11)
    assert read.modules[1].cost.backward_input_s is None
    read.write(path)
    assert CostTable.read(path) == read


def test_what_a_file_leaves_out_is_zero() -> None:
    found = CostTable.from_dict(rows())
    assert found.model is None
    assert found.names == ["a", "b"]
    assert found.modules[0].cost == StageCost(0.001, 0.002, output_bytes=64)
    last = rows()
    del last["modules"][2]["output_bytes"]  # nothing crosses after the last row
    assert CostTable.from_dict(last).modules[2].cost == StageCost(0.001, 0.002)


def test_a_stage_costs_what_its_rows_do_and_has_the_rule_of_its_last_one() -> None:
    small = StageCost(0.001, 0.002, 0.003, output_bytes=10, credit_s=0.5, observe_s=0.6, local_s=0.7)
    low, high = table(FULL, small, FULL, small).stages(["layer2"])
    assert low.forward_s == pytest.approx(0.002_2)
    assert low.step_s == pytest.approx(FULL.step_s + small.step_s)
    assert (low.output_bytes, low.credit_s, low.observe_s, low.local_s) == (10, 0.5, 0.6, 0.7)
    assert high.step_s == pytest.approx(FULL.step_s + small.step_s)
    assert (high.output_bytes, high.credit_s, high.observe_s, high.local_s) == (0, 0, 0, 0)
    (whole,) = table(FULL, small).stages([])
    assert whole.parameter_bytes == 1024


@pytest.mark.parametrize(
    ("cuts", "says"),
    [
        (["layer9"], r"no cut 'layer9' \(did you mean 'layer\d'\?\); it has: layer1, layer2"),
        (["output"], "no cut 'output'"),  # nothing is above it
        (["layer2", "layer1"], "in the order of the forward pass: layer1, layer2"),
        (["layer1", "layer1"], "expected each name once"),
    ],
)
def test_cuts_that_are_none_are_refused(cuts: list[str], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        table(FULL, FULL, FULL).stages(cuts)


def damaged(change: Any) -> Any:
    given = rows()
    change(given)
    return given


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ([1], "expected an object with the keys batch_size and modules"),
        ({"modules": []}, "has no batch_size: expected the number of examples"),
        ({"batch_size": 3}, "has no modules: expected a list"),
        ({"batch_size": 3, "modules": {"a": 1}}, "modules=.*: expected a list"),
        ({"batch_size": 3, "modules": []}, "without modules: expected one row or more"),
        (damaged(lambda d: d.update(batch_size=0)), "batch_size=0: expected"),
        (damaged(lambda d: d.update(batch_size="8")), "batch_size='8': expected"),
        (damaged(lambda d: d.update(model=3)), "model=3: expected a name"),
        (
            damaged(lambda d: d.update(batchsize=3)),
            r"unknown key 'batchsize' \(did you mean 'batch_size'\?\)",
        ),
        (damaged(lambda d: d["modules"].append(7)), "module 3 is 7: expected an object"),
        (damaged(lambda d: d["modules"][1].pop("name")), "module 1: name=None: expected the name"),
        (damaged(lambda d: d["modules"][1].update(name="a")), "module 'a' has two rows"),
        (
            damaged(lambda d: d["modules"][1].pop("backward_ms")),
            "module 'b': backward_ms is missing: expected milliseconds, a number from 0",
        ),
        (
            damaged(lambda d: d["modules"][0].pop("output_bytes")),
            "module 'a': output_bytes is missing: expected bytes",
        ),
        (damaged(lambda d: d["modules"][2].pop("forward_ms")), "module 'c': forward_ms is missing"),
        (damaged(lambda d: d["modules"][1].update(forward_ms=None)), "module 'b': forward_ms=None: expected"),
        (damaged(lambda d: d["modules"][1].update(forward_ms=-1)), "module 'b': forward_ms=-1: expected"),
        (damaged(lambda d: d["modules"][1].update(credit_ms=float("nan"))), "'b': credit_ms=nan: expected"),
        (damaged(lambda d: d["modules"][1].update(held_bytes=float("inf"))), "'b': held_bytes=inf: expected"),
        (damaged(lambda d: d["modules"][1].update(observe_ms="2")), "'b': observe_ms='2': expected"),
        (damaged(lambda d: d["modules"][1].update(local_ms=True)), "'b': local_ms=True: expected"),
        (
            damaged(lambda d: d["modules"][1].update(forwad_ms=1)),
            r"module 'b': unknown key 'forwad_ms' \(did you mean 'forward_ms'\?\); expected name, forward_ms",
        ),
        (damaged(lambda d: d["modules"][1].update(backward_input_ms=-1)), "a number from 0, or null"),
    ],
)
def test_a_table_that_is_wrong_is_refused_in_one_line(given: Any, says: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        CostTable.from_dict(given)
    assert "\n" not in str(caught.value)
    path = tmp_path / "costs.json"
    path.write_text(json.dumps(given))
    with pytest.raises(ConfigError, match=says) as caught:
        CostTable.read(path)
    assert str(caught.value).startswith(str(path))


@pytest.mark.parametrize("content", [b"forward_ms\n1", b"", b"\xff\xfe{}", b"[" * 100_000])
def test_a_file_that_is_no_json_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "costs.json"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"costs\.json is no JSON .*give a table of costs"):
        CostTable.read(path)


def test_files_that_are_not_there_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read .*give a table of costs as a JSON file"):
        CostTable.read(tmp_path / "none.json")
    with pytest.raises(ConfigError, match="cannot be read"):
        CostTable.read(tmp_path)
    with pytest.raises(ConfigError, match="cannot be written .*in a folder that exists"):
        table(FULL).write(tmp_path / "none" / "costs.json")
