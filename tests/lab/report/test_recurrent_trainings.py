"""Tables of recurrent runs of one length of unrolls, and of networks that tick at different rates."""

from __future__ import annotations

from typing import Any

import pytest

from synthgrad.lab.records import Cell
from synthgrad.lab.report import Sheet, markdown
from synthgrad.lab.report.published import recurrent_figure
from synthgrad.lab.report.trainings import Table, table_sheet
from tests.lab.report.helpers import labels, record, tables
from tests.lab.report.recurrent import bad, clocked_run, copy_run, text_run

LSTM = {"data": "copy", "arch": "lstm", "layers": 1, "width": 32, "unroll": 3}


def _table(*records: dict[str, Any]) -> Table:
    (table,) = tables(records)
    return table


def _sheet(*records: dict[str, Any]) -> Sheet:
    return table_sheet(_table(*records))


def _column(sheet: Sheet, heading: str) -> list[str]:
    return [row[sheet.headings.index(heading)] for row in sheet.rows]


def test_columns_are_those_that_were_measured() -> None:
    assert _sheet(copy_run(), copy_run("dni")).headings == (
        *("method", "sequence length", "published", "step", "ratio to bptt", "runs"),
    )
    assert _sheet(text_run(data="shakespeare")).headings == (
        *("method", "bits per character", "step", "ratio to bptt", "runs"),
    )


def test_the_reference_comes_first_and_ratios_are_to_it() -> None:
    sheet = _sheet(copy_run("dni_aux", ms=15.0), copy_run("dni", ms=12.0), copy_run("bptt", ms=10.0))
    assert _column(sheet, "method") == ["bptt", "dni", "dni_aux"]
    assert _column(sheet, "ratio to bptt") == ["1.00 ×", "1.20 ×", "1.50 ×"]


def test_a_faster_step_has_no_cause_that_nobody_measured() -> None:
    sheet = _sheet(clocked_run("bptt"), clocked_run("dni", time={"step_ms_median": 5.0}))
    assert _column(sheet, "ratio to bptt") == ["1.00 ×", "0.50 ×"]
    assert not [h for h in sheet.headings if h.startswith("cause")]


@pytest.mark.parametrize(
    ("lengths", "cell"),
    [((7,), "7"), ((7, 9), "8 ± 1"), ((7, 8), "7.5 ± 0.5"), ((7, 7, 8), "7.3 ± 0.5"), ((1000,), "1,000")],
)
def test_sequence_lengths_have_decimals_only_where_they_must(lengths: tuple[int, ...], cell: str) -> None:
    runs = [copy_run("dni", seed, metrics={"sequence_length": n}) for seed, n in enumerate(lengths)]
    assert _column(_sheet(*runs), "sequence length") == [cell]


def test_what_it_took_to_come_to_the_best_stands_where_it_was_recorded() -> None:
    metrics = {"bits_per_char": 1.5, "chars_to_best": 20_000, "time_to_best_s": 2.5}
    sheet = _sheet(*(text_run(seed=k, metrics=metrics) for k in range(2)))
    assert _column(sheet, "characters to best") == ["20,000 ± 0"]
    assert _column(sheet, "time to best") == ["2.5 ± 0.0 s"]
    other = text_run("dni", metrics=metrics, env={"device": "a processor", "threads": 9})
    untimed = _sheet(text_run(metrics=metrics), other).headings
    assert untimed == ("method", "bits per character", "published", "characters to best", "runs")


def test_titles_name_the_unrolls_and_no_word_twice() -> None:
    assert _table(copy_run()).title == "copy · quick · lstm 1 layer × 32 · T=3 · 300 steps of 10"
    deep = text_run(cell=LSTM | {"data": "ptb", "layers": 2})
    assert _table(deep).title == "charlm · quick · ptb · lstm 2 layers × 32 · T=3 · 600 steps of 10"
    assert (
        _table(clocked_run()).title == "multinet · quick · mnist · clocked × 16 · period 4 · 30 steps of 32"
    )


@pytest.mark.parametrize(
    ("rule", "label"),
    [
        ({}, "dni"),
        ({"norm": True, "alpha": 0.1, "lr_factor": 1.0, "aux_weight": 1.0}, "dni"),
        ({"alpha": 1.0}, "dni (α 1)"),
        ({"alpha": 0.0}, "dni (α 0)"),
        ({"hidden": [64, 32]}, "dni (hidden 64×32)"),
        ({"hidden": []}, "dni (linear)"),
        ({"norm": False, "lr_factor": 3.0}, "dni (no norm, lr ×3)"),
        ({"mix": 0.5, "window": 4}, "dni (λ 0.5 over 4 unrolls)"),
        ({"aux_weight": 0.5}, "dni (aux ×0.5)"),
    ],
)
def test_rows_say_what_differs_from_the_paper(rule: dict[str, Any], label: str) -> None:
    assert labels(_table(copy_run("dni", config={"rule": rule})))[0] == label


def test_runs_that_differ_in_alpha_are_two_rows() -> None:
    rules = [{"lr": 0.003, "rule": {"alpha": alpha}} for alpha in (0.1, 1.0)]
    table = _table(*(copy_run("dni", config=config) for config in rules))
    assert labels(table) == ["dni", "dni (α 1)"]


def test_tasks_that_differ_are_apart() -> None:
    easier = copy_run(config={"lr": 0.003, "symbols": 2, "threshold_bits": 0.3})
    assert len(tables([copy_run(), easier])) == 2


# Published figures


@pytest.mark.parametrize(
    ("data", "unroll", "figures"),
    [
        ("copy", 2, ("7†", "16†", "16†")),
        ("copy", 5, ("8†", "18†", "18†")),
        ("repeat_copy", 3, ("5", "33", "59")),
        ("repeat_copy", 4, ("19†", "39†", "67†")),
        ("ptb", 5, ("1.37†", "1.35†", "1.35†")),
        ("ptb", 8, ("1.35†", "1.34†", "1.33†")),
        ("ptb", 40, ("1.34†", "None", "None")),
    ],
)
def test_figures_of_the_paper(data: str, unroll: int, figures: tuple[str, ...]) -> None:
    cell = LSTM | {"data": data, "unroll": unroll}
    assert tuple(str(recurrent_figure(Cell(cell), m)) for m in ("bptt", "dni", "dni_aux")) == figures


@pytest.mark.parametrize(
    ("change", "method"),
    [
        ({"data": "shakespeare"}, "dni"),
        ({"arch": "gru"}, "dni"),
        ({"unroll": 7}, "dni"),
        ({}, "cdni"),
    ],
)
def test_what_was_not_published_has_no_figure(change: dict[str, Any], method: str) -> None:
    assert recurrent_figure(Cell(LSTM | {"data": "copy"} | change), method) is None


def test_notes_say_whose_figures_and_which_are_recalled() -> None:
    notes = " ".join(_sheet(copy_run()).notes)
    assert "Jaderberg et al. 2016, LSTM of 256 units" in notes
    assert "† as recalled from the paper" in notes
    read = copy_run(experiment="repeat_copy", cell=LSTM | {"data": "repeat_copy"})
    assert _column(_sheet(read), "published") == ["5"]
    assert "†" not in " ".join(_sheet(read).notes)
    assert "58 % of the data" in " ".join(_sheet(text_run()).notes)
    assert _sheet(text_run(data="shakespeare")).notes == ()


def test_markdown_has_the_notes_and_no_times_on_demand() -> None:
    metrics = {"bits_per_char": 1.5, "time_to_best_s": 2.5}
    sheet = _sheet(text_run(metrics=metrics), text_run("dni", metrics={"bits_per_char": 1.6}))
    lines = markdown(sheet.without(lambda column: column.timed)).splitlines()
    assert "| method | bits per character | published |" in lines
    assert "*All rows: runs: 1.*" in lines
    assert "*† as recalled from the paper, not read in a copy of it.*" in lines
    assert sheet.headings == (
        *("method", "bits per character", "published", "time to best", "step", "ratio to bptt", "runs"),
    )


# Two networks


def test_both_networks_have_their_columns() -> None:
    runs = [clocked_run(m, seed) for m in ("cdni", "dni", "bptt") for seed in (0, 1)]
    sheet = _sheet(*runs)
    assert sheet.headings == (
        *("method", "accuracy of A", "accuracy of B", "updates of A", "updates of B"),
        *("step", "ratio to bptt", "runs"),
    )
    assert sheet.rows[0][:4] == ("bptt", "80.00 ± 0.00 %", "45.00 ± 0.00 %", "12.5 ± 0.0 /s")
    assert _column(sheet, "method") == ["bptt", "dni", "cdni"]


def test_held_out_examples_are_said_to_be() -> None:
    assert "held out" in " ".join(_sheet(clocked_run(config={"hold_out": 500})).remarks)
    assert "held out" not in " ".join(_sheet(clocked_run()).remarks)


def test_a_rule_that_does_not_see_the_receiver_says_so() -> None:
    rule = {"hidden": [], "receiver": False}
    assert labels(_table(clocked_run("dni", config={"rule": rule})))[0] == "dni (without s_B)"


def test_a_search_names_the_rule_of_those_that_have_one() -> None:
    table = _table(*(clocked_run(m, experiment="multinet_search") for m in ("bptt", "dni")))
    assert labels(table) == ["bptt", "dni (linear)"]


# Failures


def test_a_bad_run_keeps_its_row() -> None:
    sheet = _sheet(copy_run(), bad(copy_run("dni")))
    assert sheet.rows[1] == ("dni", "—", "14†", "—", "—", "0, 1 not ok")
    assert sheet.failures == ("dni: diverged: the loss is not finite",)


def test_without_the_reference_no_ratio() -> None:
    assert "ratio to bptt" not in _sheet(copy_run("dni")).headings
    assert "ratio to bptt" not in _sheet(copy_run("dni"), bad(copy_run())).headings


def test_feed_forward_tables_have_their_own_reference() -> None:
    assert "ratio to backprop" in _sheet(record(), record("dni")).headings
    assert _table(record()).reference == "backprop"
