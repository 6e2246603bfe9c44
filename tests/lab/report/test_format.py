"""Tables as text: columns, their order, and what stands in them."""

from __future__ import annotations

from typing import Any

from synthgrad.lab.report import Sheet, Table, markdown, table_sheet, tabulate
from synthgrad.lab.report.sheet import as_markdown, unit
from tests.lab.report.helpers import failed, record


def _table(*records: dict[str, Any]) -> Table:
    (table,) = tabulate(records)
    return table


def _column(sheet: Sheet, heading: str) -> list[str]:
    return [row[sheet.headings.index(heading)] for row in sheet.rows]


def test_columns_of_a_table() -> None:
    sheet = table_sheet(_table(record(), record("dni")))
    assert sheet.headings == (
        *("method", "test error", "published", "step", "ratio to backprop"),
        *("time to 3 % error", "cause of speed-up", "runs"),
    )


def test_cells_of_a_row() -> None:
    runs = [
        record("dni", seed, time={"step_ms_median": 12.5}, metrics={"test_error_pct": e})
        for seed, e in ((0, 1.0), (1, 2.5))
    ]
    sheet = table_sheet(_table(record(), *runs))
    assert sheet.rows[1] == ("dni", "1.75 ± 0.75 %", "2.2 %", "12.50 ms", "1.25 ×", "—", "—", "2")


def test_target_that_is_not_known() -> None:
    assert "time to target" in table_sheet(_table(record(config={}))).headings


def test_estimate_stands_beside_the_ratio_where_a_record_has_one() -> None:
    runs = [record(estimate={"ratio_to_backprop": 1.0}), record("cdni", estimate={"ratio_to_backprop": 1.5})]
    sheet = table_sheet(_table(*runs))
    assert sheet.headings.index("estimated") == sheet.headings.index("ratio to backprop") + 1
    assert _column(sheet, "estimated") == ["1.00 ×", "1.50 ×"]


def test_estimate_of_a_failed_run_is_kept() -> None:
    sheet = table_sheet(_table(record(), failed("x", estimate={"ratio_to_backprop": 1.5})))
    assert _column(sheet, "estimated") == ["—", "1.50 ×"]


def test_unknown_estimate_makes_no_column() -> None:
    sheet = table_sheet(_table(record(estimate={"ratio_to_backprop": None}), record("dni", estimate=None)))
    assert "estimated" not in sheet.headings


def test_recurrent_measures_stand_in_place_of_the_error() -> None:
    cell = {"data": "ptb", "arch": "lstm"}
    runs = [record("dni", k, cell=cell, metrics={"bits_per_char": 1.3 + k / 10}) for k in range(2)]
    sheet = table_sheet(_table(*runs))
    assert "test error" not in sheet.headings
    assert _column(sheet, "bits per character") == ["1.350 ± 0.050"]
    solved = table_sheet(_table(record("dni", cell=cell, metrics={"sequence_length": 16})))
    assert _column(solved, "sequence length") == ["16"]


def test_columns_of_times_that_are_not_compared_are_left_out() -> None:
    sheet = table_sheet(_table(record(), record("dni", env={"device": "a processor", "threads": 9})))
    assert sheet.headings == ("method", "test error", "published", "runs")


def test_markdown_has_a_line_for_each_row_and_names_the_source() -> None:
    lines = markdown(_table(record(), failed("x"))).splitlines()
    assert lines[0].startswith("| method | test error | published |")
    assert set(lines[1]) == {"|", "-"}
    assert [line.split(" | ")[0] for line in lines[2:4]] == ["| backprop", "| dni"]
    assert len({line.count("|") for line in lines[:4]}) == 1
    assert "500,000 steps" in lines[5]


def test_markdown_of_errors_has_no_times() -> None:
    text = markdown(_table(record(estimate={"ratio_to_backprop": 1.0})), errors_only=True)
    assert text.splitlines()[0] == "| method | test error | published | runs |"


def test_markdown_without_published_figures_is_the_table_alone() -> None:
    text = markdown(_table(record(cell={"data": "other", "arch": "mine"})))
    assert all(line.startswith("|") for line in text.splitlines())


def test_markdown_cells_cannot_break_the_table() -> None:
    sheet = Sheet("t", ("a|b",), (("one\ntwo | three",),), (False,))
    assert as_markdown(sheet) == "| a\\|b |\n|---|\n| one two \\| three |\n"


def test_units() -> None:
    assert unit("step_ms_median", 1.234) == "1.23 ms"
    assert unit("saved_bytes_peak", 3 * 2**20) == "3.00 MiB"
    assert unit("examples_per_s", 1234.5) == "1,234 /s"
    assert unit("ratio_to_best_backprop", 0.5) == "0.50 ×"
    assert unit("time_to_accuracy_s", 61.0) == "61.0 s"
    assert unit("accuracy_pct", 97.25) == "97.25 %"
    assert unit("num_things", 1200.0) == "1,200"
    assert unit("step_ms_median", None) == "—"
