"""What the report says of runs in which one stage is dead."""

from __future__ import annotations

from typing import Any

from synthgrad.lab.report.absence import absence_groups, absence_sheet
from synthgrad.lab.report.words import DASH
from tests.lab.report.helpers import typed


def run(seed: int, absent: str, error_pct: float, **changes: Any) -> dict[str, Any]:
    return {
        "experiment": "bench/absence",
        "tier": "quick",
        "method": absent,
        "seed": seed,
        "cell": {"stages": 3, "rule": "cdni", "synthetic_inputs": True},
        "metrics": {
            **{"error_before_pct": 20.0, "error_alone_pct": 15.0 + error_pct, "test_error_pct": error_pct},
            **{"steps_stage0": 3000, "steps_stage1": 2000, "steps_stage2": 2990},
        },
        "curve": [
            {"share_of_run": 0.5, "test_error_pct": 10.0 + error_pct},
            {"share_of_run": 1.0, "test_error_pct": error_pct},
        ],
        "config": {},
        "env": {},
        "time": {},
        "status": "ok",
        "error": None,
        **changes,
    }


def test_a_row_has_the_median_of_seeds() -> None:
    records = list(
        typed([run(0, "upper", 2.0), run(1, "upper", 5.0), run(2, "upper", 3.0), run(0, "none", 1.0)])
    )
    upper, none = absence_sheet(records).rows
    assert upper == (
        *("cdni", "synthetic inputs", "the highest dead", "3", "20.00 %", "18.00 %", "3.00 %", "3.00 %"),
        "3,000, 2,000, 2,990",
    )
    assert none[2:4] == ("nobody dead", "1")


def test_how_it_comes_back_makes_another_row() -> None:
    usual = run(0, "upper", 2.0)
    curve = [{"share_of_run": k / 24, "test_error_pct": 30.0 - k} for k in range(1, 25)]
    cell = {**usual["cell"], "settle_steps": 100, "begins": "fresh"}
    sheet = absence_sheet(list(typed([usual, run(0, "upper", 6.0, cell=cell, curve=curve)])))
    k, soon = sheet.headings.index("it comes back"), sheet.headings.index("soon after that")
    assert [row[k] for row in sheet.rows] == [DASH, "with fresh weights, its first 100 answers ignored"]
    assert sheet.rows[1][soon] == "13.00 %"
    (group,) = absence_groups(list(typed([usual, run(0, "upper", 6.0, cell=cell)])))
    assert [plot.title for plot in group.plots] == [
        "cdni, synthetic inputs",
        "cdni, synthetic inputs, with fresh weights, its first 100 answers ignored",
    ]


def test_a_panel_for_each_rule_has_a_line_for_each_stage() -> None:
    waits = run(0, "lower", 4.0, cell={"stages": 3, "rule": "cdni", "synthetic_inputs": False})
    records = list(typed([run(0, "upper", 2.0), run(1, "upper", 4.0), run(0, "none", 1.0), waits]))
    (group,) = absence_groups(records)
    first, second = group.plots
    assert [line.name for line in first.lines] == ["the highest dead", "nobody dead"]
    assert first.lines[0].points == ((50.0, 13.0, 0.0, 0.0), (100.0, 3.0, 0.0, 0.0))
    assert (first.title, second.title) == ("cdni, synthetic inputs", "cdni, waits for inputs")


def test_odd_records_are_shown_as_far_as_they_go() -> None:
    odd = run(
        0, "sideways", 1.0, metrics={}, curve=[{"share_of_run": "much"}], status="failed", error="it fell"
    )
    sheet = absence_sheet(list(typed([odd])))
    assert sheet.rows[0][4:] == (DASH,) * 5
    assert absence_groups(list(typed([odd]))) == []
