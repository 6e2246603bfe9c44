"""Runs over several lengths of unrolls in one table, against cells worked out by hand."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from synthgrad.lab.report import Sheet, gathered_sheets
from synthgrad.lab.report.tables import grids_of
from synthgrad.lab.report.unrolls import cost_sheet, reached_sheet
from tests.lab.report.helpers import record, sweeps, tables, typed
from tests.lab.report.recurrent import bad, clocked_run, copy_run, text_run


def _sheets(*records: dict[str, Any], errors_only: bool = False) -> tuple[Sheet, Sheet]:
    (sweep,) = sweeps(records)
    return reached_sheet(sweep), cost_sheet(sweep, times=not errors_only)


def _cell(sheet: Sheet, row: str, column: str, unroll: int | None = None) -> str:
    """Return a cell of a row, of one length where the rows are of one each."""
    at = sheet.headings.index(column)
    (found,) = [r[at] for r in sheet.rows if r[0] == row and (unroll is None or r[1] == str(unroll))]
    return found


# Which runs are gathered


def test_several_lengths_are_one_sweep_and_no_table() -> None:
    runs = [copy_run(m, unroll=u) for m in ("bptt", "dni") for u in (5, 3)]
    (sweep,) = sweeps(runs)
    assert ([r["label"].iloc[0] for r in sweep.rows()], sweep.unrolls) == (["bptt", "dni"], [3.0, 5.0])
    assert tables(runs) == []
    assert [s.title for s in gathered_sheets(runs)] == [reached_sheet(sweep).title, cost_sheet(sweep).title]


def test_one_length_is_a_table_and_no_sweep() -> None:
    runs = [copy_run(), copy_run("dni")]
    assert sweeps(runs) == []
    assert len(tables(runs)) == 1
    assert [grid.headings for grid in grids_of(typed(runs))] == [("method", "T=3")]


@pytest.mark.parametrize(
    "change",
    [
        {"experiment": "repeat_copy"},
        {"tier": "full"},
        {"steps": 600},
        {"batch_size": 20},
        {"cell": {"data": "copy", "arch": "lstm", "layers": 1, "width": 64, "unroll": 5}},
        {"config": {"lr": 0.1, "symbols": 2, "threshold_bits": 0.15}},
        {"config": {"lr": 0.003, "symbols": 8, "threshold_bits": 0.15}},
        {"env": {"device": "another"}},
    ],
    ids=["experiment", "tier", "steps", "batch size", "width", "lr", "symbols", "device"],
)
def test_what_may_not_be_compared_stands_apart(change: dict[str, Any]) -> None:
    assert len(sweeps([copy_run(unroll=3), copy_run(unroll=5)])) == 1
    assert sweeps([copy_run(unroll=3), copy_run(unroll=5, **change)]) == []


@given(
    st.integers(1, 10**7),
    st.integers(1, 512),
    st.lists(st.integers(1, 64), min_size=2, max_size=6, unique=True),
)
def test_one_budget_of_text_is_one_sweep_whatever_is_left_over(
    chars: int, batch: int, unrolls: list[int]
) -> None:
    base = text_run()
    runs = [
        base | {"steps": chars // (batch * u), "batch_size": batch, "cell": base["cell"] | {"unroll": u}}
        for u in unrolls
    ]
    (sweep,) = sweeps(runs)
    assert sweep.records == runs


def test_two_budgets_of_text_are_two_sweeps() -> None:
    runs = [text_run(unroll=u, chars=chars) for chars in (30_000, 60_000) for u in (5, 10)]
    assert [len(sweep.records) for sweep in sweeps(runs)] == [2, 2]
    alone = [*runs[:2], text_run(unroll=5, chars=60_000)]
    assert [len(sweep.records) for sweep in sweeps(alone)] == [2]
    assert [table.record.steps for table in tables(alone)] == [1200]
    same = [text_run(chars=chars) for chars in (30_000, 60_000)]
    assert gathered_sheets(same) == []  # no table of errors over budgets


def test_the_last_record_of_a_run_counts() -> None:
    runs = [copy_run(lengths=(4,)), copy_run(unroll=5), bad(copy_run()), copy_run(lengths=(9,))]
    grid, _ = _sheets(*runs)
    assert _cell(grid, "bptt", "T=3") == "9 (1) [8†]"
    assert tables(runs) == []


def test_other_runs_are_in_no_sweep() -> None:
    assert sweeps([record(), clocked_run(), copy_run()], least=2) == []


# What was reached


def test_a_cell_has_mean_half_range_runs_and_the_published_figure() -> None:
    runs = [copy_run("dni", seed, 3, (n,)) for seed, n in enumerate((10, 12, 15))]
    grid, _ = _sheets(*runs, copy_run("bptt", unroll=3), copy_run("bptt", unroll=7))
    assert grid.headings == ("method", "T=3", "T=7")
    assert grid.rows == (("bptt", "6 (1) [8†]", "6 (1)"), ("dni", "12.3 ± 2.5 (3) [14†]", "—"))
    assert grid.title == "sequence length · copy · quick · lstm 1 layer × 32 · 300 steps of 10"
    assert any(note.startswith("In brackets published: Jaderberg et al. 2016") for note in grid.notes)


def test_text_says_how_much_was_read_and_what_was_claimed() -> None:
    grid, _ = _sheets(text_run(unroll=5), text_run(unroll=7))
    assert grid.title == (
        "bits per character · charlm · quick · ptb · lstm 1 layer × 64 · 30,000 characters in batches of 10"
    )
    assert _cell(grid, "bptt", "T=5") == "1.950 (1) [1.37†]"
    assert any("T=5 what it reaches at T=20" in note for note in grid.notes)
    other, _ = _sheets(*(text_run(unroll=u, data="shakespeare") for u in (5, 20)))
    assert not any("ublished" in note for note in other.notes)


def test_bad_runs_stay_as_what_they_are() -> None:
    diverged = [bad(copy_run("dni", seed, 5)) for seed in (1, 2)]
    grid, costs = _sheets(copy_run("dni", 0, 5), *diverged, copy_run("bptt", 0, 3))
    assert _cell(grid, "dni", "T=5") == "6 (1), 2 diverged [18†]"
    assert grid.bad == (False, True)
    assert grid.failures == ("dni, T=5: diverged: the loss is not finite",)
    assert _cell(costs, "dni", "runs", 5) == "1, 2 not ok"
    assert costs.bad == (False, True)


def test_variants_of_a_method_are_rows_of_their_own() -> None:
    strong = {"lr": 0.003, "symbols": 2, "threshold_bits": 0.15, "rule": {"alpha": 1.0}}
    grid, _ = _sheets(copy_run("dni"), copy_run("dni", unroll=5), copy_run("dni", config=strong))
    assert [row[0] for row in grid.rows] == ["dni", "dni (α 1)"]


def test_many_lengths_are_cut_and_counted() -> None:
    grid, costs = _sheets(*(copy_run(unroll=u) for u in range(1, 21)))
    assert len(grid.headings) == 13
    assert "8 more lengths of unrolls are in the records." in grid.notes
    assert len(costs.rows) == 20


# What it took


def _claim() -> list[dict[str, Any]]:
    """Return runs of text where DNI comes with T=5 as low as BPTT with T=20, of two seeds each."""
    levels = {
        ("bptt", 5): ((3.0, 2.8, 2.6), (3.0, 2.8, 2.7)),
        ("bptt", 20): ((2.9, 2.4, 2.1), (2.9, 2.3, 2.2)),
        ("dni", 5): ((2.5, 2.0, 1.9), (2.6, 2.2, 1.8)),
        ("dni", 20): ((2.9, 2.5, 2.3), (2.9, 2.5, 2.2)),
    }
    return [
        text_run(method, seed, unroll, found)
        for (method, unroll), runs in levels.items()
        for seed, found in enumerate(runs)
    ]


def test_the_level_is_the_worst_of_the_methods_best() -> None:
    # BPTT reaches 2.2 with both seeds at its best T, DNI 1.9 at its own: 2.2 is what both come to.
    _, costs = _sheets(*_claim())
    assert costs.headings == (
        *("method", "T", "steps", "validation bits", "characters to 2.200 bits", "time to 2.200 bits"),
        *("step", "ratio to bptt", "runs"),
    )
    assert _cell(costs, "bptt", "characters to 2.200 bits", 5) == "not reached"
    assert _cell(costs, "bptt", "characters to 2.200 bits", 20) == "30,000"
    assert _cell(costs, "dni", "characters to 2.200 bits", 5) == "20,000"
    assert _cell(costs, "dni", "time to 2.200 bits", 5) == "2.0 s"
    assert _cell(costs, "dni", "time to 2.200 bits", 20) == "3.0 s (1 of 2)"
    assert _cell(costs, "dni", "validation bits", 5) == "1.850 ± 0.050"
    assert costs.notes[0].startswith("2.200 bits per character, in validation, is what every method reaches")


def test_longer_unrolls_make_fewer_steps() -> None:
    _, costs = _sheets(*_claim())
    assert [row[:3] for row in costs.rows[::2]] == [("bptt", "5", "600"), ("bptt", "20", "150")]


def test_sequences_have_a_level_too() -> None:
    runs = [copy_run("bptt", lengths=(4, 5, 5)), copy_run("bptt", unroll=5, lengths=(4, 6, 6))]
    runs += [copy_run("dni", lengths=(5, 7, 9)), copy_run("dni", unroll=5, lengths=(6, 8, 9))]
    _, costs = _sheets(*runs)
    assert [h for h in costs.headings if " to " in h] == [
        *("sequences to length 6", "time to length 6", "ratio to bptt"),
    ]
    column = costs.headings.index("sequences to length 6")
    assert [row[column] for row in costs.rows] == ["not reached", "2,000", "2,000", "1,000"]
    assert "steps" not in costs.headings  # the title has them
    assert "validation bits" not in costs.headings


def test_nothing_solved_has_no_level() -> None:
    _, costs = _sheets(*(copy_run(m, unroll=u, lengths=(0, 0)) for m in ("bptt", "dni") for u in (3, 5)))
    assert costs.headings == ("method", "T", "step", "ratio to bptt", "runs")
    assert costs.notes == ()


def test_ratios_are_to_bptt_with_the_same_unrolls() -> None:
    runs = [copy_run("bptt", unroll=u, ms=ms) for u, ms in ((3, 10.0), (5, 20.0))]
    _, costs = _sheets(*runs, *(copy_run("dni", unroll=u, ms=30.0) for u in (3, 5)))
    assert [_cell(costs, "dni", "ratio to bptt", u) for u in (3, 5)] == ["3.00 ×", "1.50 ×"]


def test_times_that_cannot_be_compared_are_left_out() -> None:
    elsewhere = copy_run(unroll=5, env={"device": "a processor", "threads": 9})
    expected = ("method", "T", "sequences to length 6", "runs")
    assert _sheets(copy_run(), elsewhere)[1].headings == expected
    costs = _sheets(copy_run(), copy_run(unroll=5), errors_only=True)[1]
    assert costs.headings == expected
    assert costs.title.startswith("data · ")


def test_only_bad_runs_make_tables() -> None:
    grid, costs = _sheets(*(bad(text_run(unroll=u)) for u in (5, 10)))
    assert grid.rows == (("bptt", "1 diverged [1.37†]", "1 diverged"),)
    assert grid.title.startswith("bits per character")
    assert [row[-1] for row in costs.rows] == ["0, 1 not ok"] * 2
