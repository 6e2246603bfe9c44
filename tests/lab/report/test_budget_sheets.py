"""The table of several budgets, against numbers worked out by hand."""

from __future__ import annotations

from typing import Any

from synthgrad.lab.report import Sheet, gathered_sheets
from synthgrad.lab.report.tables import document_sheets
from synthgrad.lab.report.trainings import budget_groups, budget_sheet
from tests.lab.report.helpers import record, tables, typed


def _run(
    method: str, steps: int, error: float, seconds: float, ms: float = 10.0, prob: float = 1.0, **changes: Any
) -> dict[str, Any]:
    cell = {"data": "mnist", "arch": "fcn", "layers": 4, "width": 256, "update_prob": prob}
    metrics = {"test_error_pct": error, "updates_skipped_share": 1 - prob}
    time = {"train_s": seconds, "step_ms_median": ms}
    return record(method, **{"steps": steps, "cell": cell, "metrics": metrics, "time": time, **changes})


RUNS = [
    _run("backprop", 1000, 2.5, 10.0),
    _run("backprop", 3000, 2.0, 30.0),
    _run("cdni", 1000, 3.0, 15.0, 15.0),
    _run("cdni", 3000, 1.5, 45.0, 15.0),
    _run("cdni", 3000, 2.5, 6.0, 2.5, 0.2),
]


def _sheet(*records: dict[str, Any], errors_only: bool = False) -> Sheet:
    (group,) = budget_groups(tables(records))
    return budget_sheet(group, times=not errors_only)


def test_a_row_for_each_method_and_two_columns_for_each_budget() -> None:
    sheet = _sheet(*RUNS)
    assert sheet.headings == (
        "method",
        *("1,000 steps: error", "1,000 steps: time", "3,000 steps: error", "3,000 steps: time"),
        *("ratio to backprop", "cause of speed-up"),
    )
    assert sheet.rows == (
        ("backprop", "2.50 (1)", "10.0 s", "2.00 (1)", "30.0 s", "1.00 ×", "—"),
        ("cdni", "3.00 (1)", "15.0 s", "1.50 (1)", "45.0 s", "1.50 ×", "—"),
        ("cdni (p=0.2)", "—", "—", "2.50 (1)", "6.0 s", "0.25 ×", "80 % of updates skipped"),
    )
    assert sheet.title == "budgets · compare · quick · mnist · fcn 4 layers × 256 · batches of 32"


def test_budgets_go_from_the_shortest_to_the_longest() -> None:
    assert _sheet(*reversed(RUNS)).headings == _sheet(*RUNS).headings


def test_one_budget_makes_none() -> None:
    assert gathered_sheets([r for r in RUNS if r["steps"] == 3000]) == []


def test_in_documents_tables_of_other_settings_stay_single() -> None:
    other = _run("backprop", 500, 9.0, 1.0, experiment="stale")
    titles = [sheet.title.split(" · ")[0] for sheet in document_sheets(typed([*RUNS, other]))]
    assert titles == ["budgets", "stale"]


def test_without_times() -> None:
    assert _sheet(*RUNS, errors_only=True).headings == ("method", "1,000 steps: error", "3,000 steps: error")
    crowded = {"torch": "9.9.9", "device": "a processor", "threads": 1, "jobs": 2}
    mixed = [r | ({"env": crowded} if r["method"] == "cdni" else {}) for r in RUNS]
    shown = _sheet(*mixed)
    assert not [h for h in shown.headings if "time" in h or "ratio" in h]
    assert "Time" not in " ".join(shown.notes)


def test_bad_runs_stay() -> None:
    bad = _run("cdni", 1000, 0.0, 0.0) | {"status": "diverged", "error": "not finite", "metrics": {}}
    sheet = _sheet(*RUNS[:2], bad)
    assert sheet.rows[1][1] == "1 diverged"
    assert sheet.bad == (False, True)
    assert sheet.failures == ("cdni: diverged: not finite",)


def test_many_budgets_are_thinned_to_the_ends() -> None:
    runs = [_run("backprop", 100 * k, 1.0, 1.0) for k in range(1, 31)]
    errors = [h for h in _sheet(*runs).headings if h.endswith("error")]
    assert len(errors) == 6
    assert (errors[0], errors[-1]) == ("100 steps: error", "3,000 steps: error")
