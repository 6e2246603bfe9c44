"""Late corrections over their weight, against numbers worked out by hand."""

from __future__ import annotations

from typing import Any

from synthgrad.lab.report.corrections import correction_groups, correction_plots, correction_sheets
from synthgrad.lab.report.plot import Plot
from synthgrad.lab.report.sheet import Sheet
from tests.lab.report.helpers import cells, texts
from tests.lab.report.language import gpt_run, language
from tests.lab.report.recurrent import bad


def _run(
    bits: float,
    weight: float | None,
    lag: int = 4,
    share: float = 1.0,
    found: float | None = 0.2,
    **more: Any,
) -> dict[str, Any]:
    rule: dict[str, Any] = {"delay": lag, "weight": weight}
    rule |= {} if share == 1 else {"share": share}
    return gpt_run("late_correction", (bits,), rule=rule, weight=found if weight is None else None, **more)


def _sheet(*runs: dict[str, Any]) -> Sheet:
    (table,) = language(*runs)
    (sheet,) = correction_sheets(table)
    return sheet


def _plot(*runs: dict[str, Any]) -> Plot:
    (table,) = language(*runs)
    (plot,) = correction_plots(table)
    return plot


RUNS = [
    gpt_run(),
    _run(2.25, None),
    _run(2.5, 0.8),
    _run(2.125, 0.1),
    _run(3.0, None, share=0.25, found=0.05),
    _run(3.25, 1.0, share=0.25),
    _run(2.0, None, lag=16),  # of which there is no other weight
]


def test_weights_ascend_and_that_of_the_rule_stands_among_them() -> None:
    sheet = _sheet(*RUNS)
    found = [
        (
            row["method"],
            row["weight"],
            row["bits per character, validation"],
            row["difference to the weight by agreement"],
        )
        for row in (cells(sheet, k) for k in range(len(sheet.rows)))
    ]
    whole, quarter = "late_correction", "late_correction (25 % of messages)"
    assert found == [
        (whole, "0.1", "2.125 ← lowest", "−0.125 (−5.56 %)"),
        (whole, "0.2 (by agreement)", "2.250", "—"),
        (whole, "0.8", "2.500", "+0.250 (+11.11 %)"),
        (quarter, "0.05 (by agreement)", "3.000 ← lowest", "—"),
        (quarter, "1", "3.250", "+0.250 (+8.33 %)"),
    ]
    assert "delay: 4" in sheet.fitted().caption[0]
    assert "learning rate: 0.002" in sheet.fitted().caption[0]
    assert sheet.title.startswith("weights of late corrections · gpt_trials")


def test_the_weight_that_older_runs_do_not_record_is_a_half() -> None:
    older = gpt_run("late_correction", (2.5,), rule={"delay": 1})
    sheet = _sheet(older, _run(2.0, 0.25, lag=1))
    assert [cells(sheet, k)["weight"] for k in (0, 1)] == ["0.25", "0.5"]


def test_a_rate_of_which_there_is_one_weight_is_left_out() -> None:
    other = _run(1.0, None, config={"lr": 0.016})
    assert len(_sheet(*RUNS, other).rows) == 5
    both = _sheet(*RUNS, other, _run(1.5, 0.5, config={"lr": 0.016}))
    assert [row[0] for row in both.rows[-2:]] == ["late_correction (lr 0.016)"] * 2


def test_a_weight_that_was_not_recorded_has_no_number_and_no_place() -> None:
    runs = [_run(2.5, weight, found=None) for weight in (0.5, 0.25, None)]
    assert [cells(_sheet(*runs), k)["weight"] for k in (0, 1, 2)] == ["0.25", "0.5", "by agreement"]
    assert "*" not in [line.marker for line in _plot(*runs).lines]


def test_the_weight_found_is_the_mean_over_interfaces_and_the_last_third_of_the_curve() -> None:
    run = _run(2.0, None)
    run["curve"] = [
        {
            "step": k,
            "elapsed_s": 1.0,
            "val_bits_per_char": 2.0,
            "quality": {"a": {"weight": a}, "b": {"weight": b}},
        }
        for k, (a, b) in enumerate([(9.0, 9.0), (9.0, 9.0), (9.0, 9.0), (9.0, 9.0), (0.25, 0.5), (0.75, 1.0)])
    ]
    assert cells(_sheet(run, _run(2.5, 0.5)), 1)["weight"] == "0.625 (by agreement)"


def test_without_several_weights_there_is_nothing() -> None:
    (table,) = language(gpt_run(), _run(2.0, None), _run(2.0, None, lag=1))
    assert (correction_sheets(table), correction_plots(table), correction_groups(table)) == ([], [], [])


# The plot


def test_a_line_for_each_lag_and_share_with_the_weight_of_the_rule_marked() -> None:
    plot = _plot(*RUNS, _run(2.5, 0.1, seed=1))
    lines = {line.name: line.points for line in plot.lines if line.name}
    assert lines["late_correction"] == ((0.1, 2.3125, 0.1875, 0.1875), (0.2, 2.25, 0, 0), (0.8, 2.5, 0, 0))
    assert lines["late_correction (25 % of messages)"] == ((0.05, 3.0, 0, 0), (1.0, 3.25, 0, 0))
    stars = [(line.points[0][:2], line.colour) for line in plot.lines if line.marker == "*" and line.points]
    assert stars == [((0.2, 2.25), 0), ((0.05, 3.0), 1)]
    assert "weight by agreement" in lines
    assert plot.log_x
    assert {"weight of a late correction", "bits per character, validation", "0.1", "0.2"} <= set(texts(plot))


def test_a_weight_of_zero_has_its_place() -> None:
    plot = _plot(*RUNS, _run(2.5, 0))
    assert not plot.log_x
    assert plot.lines[0].points[0] == (0.0, 2.5, 0.0, 0.0)
    texts(plot)


def test_runs_that_ended_badly_have_no_place() -> None:
    plot = _plot(bad(_run(1.0, 0.3)), *RUNS)
    assert [p[0] for p in plot.lines[0].points] == [0.1, 0.2, 0.8]
    (table,) = language(bad(_run(1.0, 0.3)), _run(2.0, None))
    assert correction_plots(table) == []
