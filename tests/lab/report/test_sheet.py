"""Tables as text: what goes into the caption, what into further tables, and how documents show them."""

from __future__ import annotations

from synthgrad.lab.report.sheet import Column, Sheet, markdown, sheet_of
from synthgrad.lab.report.words import mean_and_spread, unit


def _sheet(columns: str, *rows: str) -> Sheet:
    """Return a table; of its columns ``*`` marks keys, ``~`` what is late, ``?`` what is optional, ``@`` a link."""
    made = [
        Column(
            name.strip("*~?@"),
            lambda row, k=k: row[k],
            key="*" in name,
            late="~" in name,
            optional="?" in name,
            partly="Between processes" if "@" in name else "",
        )
        for k, name in enumerate(columns.split())
    ]
    return sheet_of("t", made, [row.split() for row in rows], is_bad=lambda row: row[0] == "bad")


def test_what_all_rows_share_is_in_the_caption() -> None:
    fitted = _sheet("method* batch* step runs", "a 64 1 3", "b 64 2 3").fitted()
    assert fitted.caption == ("All rows: batch: 64; runs: 3.",)
    assert (fitted.main.headings, fitted.main.rows) == (("method", "step"), (("a", "1"), ("b", "2")))
    assert fitted.more == ()


def test_a_column_that_says_nothing_anywhere_is_not_in_the_caption() -> None:
    assert _sheet("method* batch* step", "a — 1", "b — 2").fitted().caption == ()


def test_a_table_keeps_its_names_and_its_figures() -> None:
    assert _sheet("method* step", "a 1", "a 1").fitted().main.headings == ("method", "step")
    one = _sheet("method* batch* step runs", "a 64 1 3").fitted()
    assert (one.caption, one.main.headings) == (("All rows: batch: 64.",), ("method", "step", "runs"))


def test_a_first_column_of_one_value_goes_where_another_names_the_rows() -> None:
    fitted = _sheet("method* batch* step", "a 64 1", "a 32 2").fitted()
    assert (fitted.caption, fitted.main.headings) == (("All rows: method: a.",), ("batch", "step"))


def test_rows_that_are_not_concerned_do_not_claim_a_value() -> None:
    fitted = _sheet("method* rate*@ step", "a — 1", "b 50 2", "c 50 3").fitted()
    assert fitted.caption == ("Between processes: rate: 50.",)
    assert fitted.main.headings == ("method", "step")
    assert _sheet("method* rate* step", "a — 1", "b 50 2").fitted().main.headings == (
        "method",
        "rate",
        "step",
    )


def test_more_than_two_keys_are_joined() -> None:
    fitted = _sheet("method* batch* compiled* threads* step", "a 64 — 1 1", "b 32 compiled 2 2").fitted()
    assert fitted.main.headings == ("method", "setting", "step")
    assert [row[1] for row in fitted.main.rows] == ["batch 64, threads 1", "batch 32, compiled, threads 2"]


def test_secondary_measures_leave_the_first_table_where_there_are_too_many() -> None:
    few = _sheet("m* a b~ c d e f", "x 1 2 3 4 5 6", "y 2 3 4 5 6 7").fitted()
    assert (few.main.headings, few.more) == (("m", "a", "b", "c", "d", "e", "f"), ())
    many = _sheet("m* a b~ c d e f g h", "x 1 2 3 4 5 6 7 8", "y 2 — 4 5 6 7 8 —").fitted()
    assert many.main.headings == ("m", "a", "c", "d", "e", "f", "g")
    assert [(part.headings, part.rows) for part in many.more] == [(("m", "b", "h"), (("x", "2", "8"),))]
    assert many.more_headings == ["b", "h"]


def test_a_long_key_stands_last() -> None:
    fitted = _sheet("m* settings*~ a", "x s 1", "y t 2").fitted()
    assert fitted.main.headings == ("m", "a", "settings")


def test_optional_columns_and_marks_of_rows() -> None:
    sheet = _sheet("m* a? b", "bad — 1", "y — 2")
    assert (sheet.headings, sheet.bad) == (("m", "b"), (True, False))
    assert sheet.first(1).rows == (("bad", "1"),)


def test_markdown() -> None:
    sheet = _sheet("m* runs a|b", "x 3 1|2", "y 3 2")
    assert markdown(sheet).split("\n\n") == [
        "**t**",
        "*All rows: runs: 3.*",
        "| m | a\\|b |\n|---|---|\n| x | 1\\|2 |\n| y | 2 |\n",
    ]


def test_units() -> None:
    assert unit("step_ms_median", 1.234) == "1.23 ms"
    assert unit("saved_bytes_peak", 3 * 2**20) == "3.00 MiB"
    assert unit("examples_per_s", 1234.5) == "1,234 /s"
    assert unit("ratio_to_best_backprop", 0.5) == "0.50 ×"
    assert unit("time_to_accuracy_s", 61.0) == "61.0 s"
    assert unit("accuracy_pct", 97.25) == "97.25 %"
    assert unit("num_things", 1200.0) == "1,200"
    assert unit("step_ms_median", None) == unit("step_ms_median", float("nan")) == "—"


def test_means_have_decimals_only_where_they_must() -> None:
    assert mean_and_spread([7.0], None) == "7"
    assert mean_and_spread([7.0, 9.0], None) == "8 ± 1"
    assert mean_and_spread([7.0, 8.0], None) == "7.5 ± 0.5"
    assert mean_and_spread([1.0, 2.0, 6.0], 2, " %") == "3.00 ± 2.50 %"
    assert mean_and_spread([], 2) == "—"
