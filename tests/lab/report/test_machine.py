"""The machine and the settings of a table's runs, and where runs differ in them."""

from __future__ import annotations

from typing import Any

from synthgrad.lab.report.machine import differences, machine_line, settings
from tests.lab.report.helpers import record, step_line, typed


def _env(**changes: Any) -> dict[str, Any]:
    return {"device": "a processor", "threads": 2, "torch": "9.9.9", "commit": "abc123"} | changes


def test_machine_in_a_line() -> None:
    env = _env(synthgrad="0.1.0", date="2026-01-02")
    assert machine_line(typed([record(env=env)])) == (
        "a processor · 2 threads · torch 9.9.9 · synthgrad 0.1.0 · commit abc123 · 2026-01-02"
    )


def test_one_thread_and_neighbours() -> None:
    assert "1 thread · 3 runs side by side" in machine_line(typed([record(env=_env(threads=1, jobs=3))]))


def test_several_machines_in_a_line() -> None:
    line = machine_line(typed([record(env=_env(threads=n)) for n in (1, 2)]))
    assert "1 or 2 threads" in line


def test_unknown_machine_has_no_line() -> None:
    assert machine_line(typed([record(env={})])) == ""


def test_runs_alike_do_not_differ() -> None:
    assert differences(typed([record(), record("dni")])) == []


def test_a_difference_names_the_rows() -> None:
    runs = [record(), record("dni"), record("cdni", env=_env(commit="def456"))]
    assert differences(typed(runs)) == [
        "Machine: runs of this table differ in commit: abc123 (backprop, dni); def456 (cdni)."
    ]


def test_dates_and_rules_may_differ() -> None:
    runs = [record(env=_env(date="1"), config={"rule": {"hidden": [1]}}), record("dni", env=_env(date="2"))]
    assert differences(typed([runs[0], runs[1] | {"config": {"rule": {"hidden": [2]}}}])) == []


def test_settings_differ() -> None:
    runs = [record(config={"eval_every": 5}), record("dni", config={"eval_every": 7})]
    (line,) = differences(typed(runs))
    assert line == "Settings: runs of this table differ in eval_every: 5 (backprop); 7 (dni)."


def test_many_values_are_counted() -> None:
    (line,) = differences(typed([record(seed=k, config={"seed_of_data": k}) for k in range(9)]))
    assert line.endswith("5 more.")


def test_settings_have_each_rule() -> None:
    runs = [
        record(),
        record("dni", config={"lr": 0.00125, "rule": {"hidden": [8], "norm": True}}),
        record("cdni", 7),
    ]
    found = dict(settings(typed(runs)))
    assert (found["data"], found["lr"], found["seeds"], found["threads"]) == ("mnist", "0.00125", "0, 7", "2")
    assert found["rule of dni (hidden 8)"] == "hidden: 8, norm: True, update_prob: 1"
    assert "rule of backprop" not in found


def test_what_a_sweep_does_not_share_varies() -> None:
    found = dict(settings(typed([step_line(cell={"width": n}) for n in (8, 16)])))
    assert (found["width"], found["layers"]) == ("varies", "4")
