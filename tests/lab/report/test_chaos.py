"""What the report says of stages under faults."""

from __future__ import annotations

from typing import Any

from synthgrad.lab.records import Record
from synthgrad.lab.report.chaos import chaos_groups, chaos_sheet
from tests.lab.report.helpers import typed


def run(method: str, **changes: Any) -> dict[str, Any]:
    return {
        "experiment": "bench/chaos",
        "tier": "quick",
        "method": method,
        "seed": 0,
        "cell": {"stages": 2, "rule": "cdni", "seconds": 900.0},
        "metrics": {
            **{"num_killed": 3, "num_frozen": 2, "num_cut": 1, "steps_last": 43210, "test_error_pct": 2.34},
            **{"survivors_pace_ratio_median": 0.9912, "survivors_pace_ratio_min": 0.951},
            **{"return_s_median": 2.345, "return_s_max": 4.01, "kept_ratio": 0.9876},
        },
        "curve": [{"elapsed_s": 2.0, "steps_per_s_stage0": 48.0, "steps_per_s_stage1": 0.0}],
        "config": {"faults": [{"kind": "frozen", "stage": 1, "begin_s": 12.0, "end_s": 20.0}]},
        "env": {},
        "time": {},
        "status": "ok",
        "error": None,
        **changes,
    }


def records(*lines: dict[str, Any]) -> list[Record]:
    return list(typed(list(lines)))


def test_a_row_says_what_happened_and_what_became_of_it() -> None:
    sheet = chaos_sheet(records(run("with_faults")))
    (row,) = sheet.rows
    assert row == (
        *("with faults", "fcn", "2", "cdni", "0", "3 + 2 + 1", "0.991 ×", "0.951 ×", "2.3 s", "4.0 s"),
        *("43,210", "0.988 ×", "2.34 %"),
    )


def test_a_language_model_has_bits() -> None:
    told = run("with_faults", cell={"arch": "gpt", "stages": 4}, metrics={"val_bits_per_char": 2.34567})
    sheet = chaos_sheet(records(told))
    found = dict(zip((column.heading for column in sheet.columns), sheet.rows[0], strict=True))
    assert (found["network"], found["validation, bits per character"]) == ("gpt", "2.346")


def test_the_timeline_has_a_line_for_each_stage_and_a_mark_for_each_fault() -> None:
    (group,) = chaos_groups(records(run("with_faults"), run("without_faults", config={}, curve=[])))
    (plot,) = group.plots
    assert [line.name for line in plot.lines] == ["stage 0", "stage 1", "frozen"]
    assert plot.lines[0].points == ((2.0, 48.0, 0.0, 0.0),)
    assert plot.lines[2].points == ((12.0, 0.0, 0.0, 0.0),)
    assert (plot.x_label, plot.y_label) == ("time (s)", "steps per second")


def test_records_without_a_timeline_or_with_odd_faults_are_drawn_as_far_as_they_go() -> None:
    assert chaos_groups(records(run("without_faults", config={}))) == []
    odd = run("with_faults", config={"faults": ["what", {"kind": "cut"}, {"kind": "cut", "begin_s": "soon"}]})
    (group,) = chaos_groups(records(odd))
    assert [line.name for line in group.plots[0].lines] == ["stage 0", "stage 1"]
