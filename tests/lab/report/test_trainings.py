"""Tables of records, against numbers worked out by hand."""

from __future__ import annotations

from typing import Any

import pytest

from synthgrad.lab.report.frame import figures
from synthgrad.lab.report.trainings import Table, cause_of, table_sheet
from tests.lab.report.helpers import cells, labels, tables


def _record(
    method: str = "backprop", seed: int = 0, error_pct: float | None = 2.0, ms: float = 10.0, **changes: Any
) -> dict[str, Any]:
    record: dict[str, Any] = {
        "schema": 1,
        "experiment": "compare",
        "tier": "quick",
        "method": method,
        "seed": seed,
        "cell": {
            "data": "mnist",
            "arch": "fcn",
            "layers": 4,
            "width": 256,
            "update_prob": 1.0,
            "engine": "in-process",
        },
        "steps": 100,
        "batch_size": 32,
        "metrics": {"test_error_pct": error_pct, "time_to_target_s": None, "updates_skipped_share": 0.0},
        "time": {"train_s": 1.0, "step_ms_median": ms},
        "curve": [],
        "status": "ok",
        "error": None,
        "config": {"lr": 1e-3, "hold_out": 0, "target_error_pct": 5.0},
        "env": {},
    }
    return record | changes


def _failed(
    method: str, seed: int = 0, status: str = "failed", error: str = "out of memory"
) -> dict[str, Any]:
    return _record(method, seed, metrics={}, time={}, status=status, error=error)


def _bench(**changes: Any) -> dict[str, Any]:
    metrics = {
        "step_ms_median": 1.5,
        "ratio_to_backprop": 0.5,
        "ratio_to_backprop_p10": 0.4,
        "ratio_to_backprop_p90": 0.6,
        "ratio_arithmetic": 1.25,
    }
    cell = {"width": 16, "layers": 4, "batch_size": 8, "threads": 1, "engine": "plain", "update_prob": 1.0}
    return _record("dni", experiment="bench/step", metrics=metrics, cell=cell, **changes)


def _table(*records: dict[str, Any]) -> Table:
    (table,) = tables(records)
    return table


def _row(*records: dict[str, Any], method: str | None = None) -> dict[str, str]:
    """Return the texts of a method's row by their headings; without one of the first row."""
    sheet = table_sheet(_table(*records))
    names = [row[0] for row in sheet.rows]
    return cells(sheet, 0 if method is None else names.index(method))


# Which records make a table


def test_methods_and_seeds_of_one_setting_are_one_table() -> None:
    table = _table(_record(), _record("dni"), _record(seed=1), _record("dni", 1))
    assert labels(table) == ["backprop", "dni"]
    assert [len(runs) for runs in table.rows()] == [2, 2]
    assert len(table.records) == 4


@pytest.mark.parametrize(
    "change",
    [
        {"experiment": "other"},
        {"tier": "full"},
        {"steps": 200},
        {"batch_size": 64},
        {"cell": {"data": "cifar10", "arch": "fcn", "layers": 4, "width": 256}},
        {"cell": {"data": "mnist", "arch": "fcn", "layers": 3, "width": 256}},
        {"config": {"lr": 1e-2, "hold_out": 0}},
        {"config": {"lr": 1e-3, "hold_out": 500}},
    ],
    ids=["experiment", "tier", "steps", "batch size", "data", "layers", "lr", "hold out"],
)
def test_what_may_not_be_compared_stands_apart(change: dict[str, Any]) -> None:
    assert len(tables([_record(), _record(**change)])) == 2


@pytest.mark.parametrize(
    ("cell", "name"),
    [
        ({"update_prob": 0.2}, "dni (p=0.2)"),
        ({"engine": "plain"}, "dni (plain loop)"),
        ({"update_prob": 0.5, "engine": "plain"}, "dni (p=0.5, plain loop)"),
    ],
)
def test_settings_of_a_method_make_rows_of_one_table(cell: dict[str, Any], name: str) -> None:
    base = _record("dni")
    table = _table(base, _record("dni", cell=base["cell"] | cell))
    assert labels(table) == ["dni", name]


def test_other_cuts_make_another_row() -> None:
    base = _record("dni", error_pct=1.0)
    other = _record("dni", error_pct=9.0, cell=base["cell"] | {"at": ["layer1"]})
    table = _table(base | {"cell": base["cell"] | {"at": []}}, other)
    assert sorted(figures(runs, "metrics.test_error_pct") for runs in table.rows()) == [[1.0], [9.0]]
    assert len(set(labels(table))) == 2


def test_backprop_needs_no_word_about_its_loop() -> None:
    base = _record()
    assert labels(_table(_record(cell=base["cell"] | {"engine": "plain"})))[0] == "backprop"


def test_search_names_the_rule() -> None:
    rule = {"hidden": [256, 128], "norm": False, "lr_factor": 3.0, "per_example": False, "like_layer": False}
    record = _record("dni", experiment="dni_search", config={"rule": rule})
    assert labels(_table(record))[0] == "dni (hidden 256×128, no norm, lr ×3, mean-reduced units)"


def test_benchmarks_are_in_no_table() -> None:
    assert tables([_bench()]) == []
    assert len(_table(_bench(), _record()).records) == 1


def test_nothing_makes_no_table() -> None:
    assert tables([]) == []


def test_title_says_what_is_trained_on_what() -> None:
    assert _table(_record()).title == "compare · quick · mnist · fcn 4 layers × 256 · 100 steps of 32"


def test_last_record_of_a_run_wins() -> None:
    row = _row(_failed("dni"), _record("dni", error_pct=9.0), _record("dni", error_pct=3.0))
    assert (row["test error"], row["runs"]) == ("3.00 %", "1")


def test_a_failure_after_a_success_wins_as_well() -> None:
    assert _row(_record("dni"), _failed("dni"))["runs"] == "0, 1 not ok"


# Numbers


def test_error_is_the_mean_and_spread_half_the_range() -> None:
    row = _row(*(_record("dni", k, error) for k, error in enumerate((1.0, 2.0, 6.0))), method="dni")
    assert row["test error"] == "3.00 ± 2.50 %"
    assert _row(_record())["test error"] == "2.00 %"


def test_step_is_the_median_over_runs_and_ratio_that_over_backprop() -> None:
    backprop = [_record(seed=k, ms=ms) for k, ms in enumerate((9.0, 10.0, 50.0))]
    dni = [_record("dni", k, ms=ms) for k, ms in enumerate((16.0, 15.0, 11.0))]
    row = _row(*backprop, *dni, method="dni")
    assert (row["step"], row["ratio to backprop"]) == ("15.00 ms", "1.50 ×")
    assert _row(*backprop, *dni, method="backprop")["ratio to backprop"] == "1.00 ×"


def test_ratio_is_to_the_same_seeds() -> None:
    # DNI was stopped after seed 0: its 20 ms are to be held against the 10 ms of seed 0.
    records = [_record(seed=0, ms=10.0), _record(seed=1, ms=30.0), _record("dni", 0, ms=20.0)]
    assert _row(*records, method="dni")["ratio to backprop"] == "2.00 ×"


def test_no_backprop_no_ratio() -> None:
    row = _row(_record("dni"))
    assert (row["ratio to backprop"], row["step"], row["cause of speed-up"]) == ("—", "10.00 ms", "—")


def test_time_to_target_is_of_those_that_reached_it() -> None:
    times = (4.0, None, 8.0, 5.0)
    runs = [
        _record("dni", k, metrics={"test_error_pct": 4.0, "time_to_target_s": t}) for k, t in enumerate(times)
    ]
    assert _row(*runs)["time to 5 % error"] == "5.0 s (3 of 4)"
    assert _row(_record())["time to 5 % error"] == "—"
    assert "time to target" in _row(_record(config={}))


def test_held_out_data_is_validation() -> None:
    config = {"lr": 1e-3, "hold_out": 500, "target_error_pct": 5.0}
    row = _row(_record(config=config, metrics={"val_error_pct": 7.0, "test_error_pct": 1.0}))
    assert row["validation error"] == "7.00 %"
    assert "test error" not in row


def test_a_ratio_of_scattered_steps_is_marked_and_explained() -> None:
    wild = {"step_ms_median": 280.7, "step_ms_p10": 10.0, "step_ms_p90": 900.0}
    sheet = table_sheet(_table(_record(ms=10.0), _record("dni", time=wild)))
    assert cells(sheet, 1)["ratio to backprop"] == "28.07 × (unsteady)"
    assert cells(sheet, 0)["ratio to backprop"] == "1.00 ×"
    assert "measure again" in sheet.warnings[0]
    calm = wild | {"step_ms_p90": 500.0}
    assert table_sheet(_table(_record(ms=10.0), _record("dni", time=calm))).warnings == ()


def test_a_ratio_taken_beside_other_programs_is_marked() -> None:
    busy = _record("dni", env={"other_load": 1.2})
    assert _row(_record(), busy, method="dni")["ratio to backprop"] == "1.00 × (unsteady)"


# Estimates


def test_estimate_stands_beside_the_ratio_where_a_record_has_one() -> None:
    runs = [
        _record(estimate={"ratio_to_backprop": 1.0}),
        _record("cdni", estimate={"ratio_to_backprop": 1.5}),
    ]
    sheet = table_sheet(_table(*runs))
    assert sheet.headings.index("estimated") == sheet.headings.index("ratio to backprop") + 1
    assert [cells(sheet, k)["estimated"] for k in (0, 1)] == ["1.00 ×", "1.50 ×"]


def test_estimate_of_a_failed_run_is_kept_and_an_unknown_one_makes_no_column() -> None:
    bad = _failed("dni") | {"estimate": {"ratio_to_backprop": 1.5}}
    assert _row(_record(), bad, method="dni")["estimated"] == "1.50 ×"
    unknown = _record(estimate={"ratio_to_backprop": None})
    assert "estimated" not in table_sheet(_table(unknown, _record("dni", estimate=None))).headings


# Bad runs


@pytest.mark.parametrize("status", ["failed", "diverged"])
def test_bad_run_keeps_its_row_and_says_why(status: str) -> None:
    records = [_record(), _failed("dni", status=status, error="the message was not finite")]
    sheet = table_sheet(_table(*records))
    assert (sheet.bad, sheet.failures) == ((False, True), (f"dni: {status}: the message was not finite",))
    texts = _row(*records, method="dni")
    assert (texts.pop("method"), texts.pop("runs"), texts.pop("published")) == ("dni", "0, 1 not ok", "2.2 %")
    assert set(texts.values()) == {"—"}


def test_bad_run_does_not_count_in_the_numbers() -> None:
    bad = _record("dni", 1, error_pct=90.0, ms=99.0, status="diverged", error="not finite")
    row = _row(_record("dni", 0, 2.0, 10.0), bad, method="dni")
    assert (row["test error"], row["step"], row["runs"]) == ("2.00 %", "10.00 ms", "1, 1 not ok")


def test_diverged_backprop_is_no_reference() -> None:
    worse = _record(seed=1, ms=99.0, metrics={}, status="diverged")
    assert _row(_record(), worse, _record("dni", ms=20.0), method="dni")["ratio to backprop"] == "2.00 ×"


def test_same_cause_is_said_once() -> None:
    table = _table(_failed("dni", 0), _failed("dni", 1), _failed("dni", 2, error="other"))
    assert table_sheet(table).failures == ("dni: failed: other; failed: out of memory",)


# Causes


@pytest.mark.parametrize(
    ("ratio", "skipped", "cause"),
    [
        (None, 0.8, ""),
        (1.5, 0.0, ""),
        (1.5, 0.8, ""),
        (0.98, 0.8, ""),
        (0.5, 0.0, "equal work, faster"),
        (0.5, None, "equal work, faster"),
        (0.5, 0.8, "80 % of updates skipped"),
        (0.97, 0.333, "33 % of updates skipped"),
    ],
)
def test_cause_of(ratio: float | None, skipped: float | None, cause: str) -> None:
    assert cause_of(ratio, skipped) == cause


def test_skipped_updates_are_the_cause_in_a_row() -> None:
    metrics = [{"test_error_pct": 3.0, "updates_skipped_share": share} for share in (0.7, 0.9)]
    fast = [_record("cdni", k, ms=4.0, metrics=m) for k, m in enumerate(metrics)]
    assert _row(_record(), *fast, method="cdni")["cause of speed-up"] == "80 % of updates skipped"


@pytest.mark.parametrize("lost", ["cell", "config", "metrics", "time", "curve", "error", "env", "tier"])
def test_a_record_with_less_is_shown(lost: str) -> None:
    row = _row({k: v for k, v in _record().items() if k != lost})
    assert (row["method"], row["runs"]) == ("backprop", "1")


def test_times_of_other_threads_are_not_compared() -> None:
    alone = _record("backprop", 0) | {"env": {"device": "cpu", "threads": 2, "jobs": 1}}
    crowded = _record("cdni", 0) | {"env": {"device": "cpu", "threads": 1, "jobs": 2}}
    sheet = table_sheet(_table(alone, crowded))
    assert sheet.headings == ("method", "test error", "published", "runs")
    elsewhere = _record("backprop", 0) | {"env": {"device": "another"}}
    assert len(tables([alone, elsewhere])) == 2


@pytest.mark.parametrize(
    ("experiment", "method", "rule", "name"),
    [
        ("stale", "stale", {}, "stale (decay 0)"),
        ("stale", "stale", {"decay": 0.95}, "stale (decay 0.95)"),
        ("stale", "cdni", {}, "cdni"),
        ("stale", "stale", {"true_messages": True}, "stale (decay 0, true messages)"),
        ("compare", "stale", {}, "stale"),
        ("compare", "stale", {"decay": 0.5}, "stale (decay 0.5)"),
        ("compare", "delayed", {"delay": 1}, "delayed"),
        ("compare", "delayed", {"delay": 3, "shrink": 0.5}, "delayed (delay 3, gradient ×0.5)"),
        ("compare", "cdni", {"warm_up": 200}, "cdni (from batch 200)"),
        ("compare", "cdni_unlock", {"input_hidden": [64]}, "cdni_unlock (I with hidden 64)"),
        ("cnn_search", "local_loss", {"pool": 4}, "local_loss (linear, pooled to 4)"),
    ],
)
def test_rows_name_what_is_particular_about_the_rule(
    experiment: str, method: str, rule: dict[str, Any], name: str
) -> None:
    config = {"lr": 1e-3, "hold_out": 0, "rule": {"hidden": [], "norm": True, "lr_factor": 1.0, **rule}}
    assert labels(_table(_record(method, experiment=experiment, config=config)))[0] == name
