"""Cosine of credit and true gradient, beside what a row loses, against numbers worked out by hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from synthgrad.lab.report.agreement import agreement_groups, agreement_plots, agreement_sheets
from synthgrad.lab.report.plot import Plot
from synthgrad.lab.report.sheet import Sheet
from tests.lab.report.helpers import cells, texts
from tests.lab.report.language import gpt_run, language, late


def _curve(*cosines: dict[str, float | None]) -> list[dict[str, Any]]:
    """Return a curve with the cosines of each interface at each point."""
    measured = [{name: {"cosine": value} for name, value in point.items()} for point in cosines]
    return [{"step": k, "tokens_seen": 10 * k, "quality": quality} for k, quality in enumerate(measured, 1)]


def _run(bits: float, cosines: Sequence[float], method: str = "local_loss", **more: Any) -> dict[str, Any]:
    """Return a run whose interfaces have the same cosines at every point."""
    point = {f"block{k}": cosine for k, cosine in enumerate(cosines, 1)}
    return gpt_run(method, (bits,), curve=_curve(point), **more)


def _sheet(*runs: dict[str, Any]) -> Sheet:
    (table,) = language(*runs)
    (sheet,) = agreement_sheets(table)
    return sheet


def _plot(*runs: dict[str, Any]) -> Plot:
    (table,) = language(*runs)
    (plot,) = agreement_plots(table)
    return plot


def test_the_mean_over_the_last_third_of_the_curve() -> None:
    curve = _curve(*({"block1": value} for value in (0.9, 0.8, 0.7, 0.6, 0.25, 0.5)), {"block1": None})
    sheet = _sheet(gpt_run("cdni", curve=curve))  # two of seven points, of which one was not measured
    assert cells(sheet)["after block1"] == "0.500"
    assert cells(_sheet(gpt_run("cdni", curve=curve[:6])))["after block1"] == "0.375"
    assert cells(_sheet(gpt_run("cdni", curve=curve[4:6])))["after block1"] == "0.500"  # the last of two


def test_a_row_for_each_rule_and_a_column_for_each_interface() -> None:
    runs = [
        gpt_run(bits=(2.5,)),
        late(1),
        _run(2.75, [0.5], modules=2),
        _run(3.0, [0.25, 0.5, 0.75], "interlocked", modules=4),
        _run(3.0, [-0.125], "cdni"),
    ]
    sheet = _sheet(*runs)
    assert {row[0]: cells(sheet, k)["after block1"] for k, row in enumerate(sheet.rows)} == {
        "cdni": "−0.125",
        "local_loss": "0.500",
        "interlocked (4 modules)": "0.250",
    }
    assert [cells(sheet, 1)[f"after block{k}"] for k in (1, 2, 3)] == ["0.500", "—", "—"]
    assert [cells(sheet, 2)[f"after block{k}"] for k in (1, 2, 3)] == ["0.250", "0.500", "0.750"]
    assert cells(sheet, 2)["difference to backprop, validation"] == "+0.500 (+20.00 %)"
    assert sheet.title.startswith("cosine of the credit · gpt_trials")
    assert "Backprop and delayed learn from true gradients" in sheet.notes[0]


def test_interfaces_stand_in_the_order_of_the_network() -> None:
    names = ("block10", "block9", "block1")
    sheet = _sheet(gpt_run("cdni", curve=_curve({name: 0.5 for name in names})))
    assert [h for h in sheet.headings if h.startswith("after")] == [
        *("after block1", "after block9", "after block10"),
    ]


def test_several_seeds_have_a_spread() -> None:
    sheet = _sheet(_run(2.0, [0.5], seed=0), _run(2.0, [0.75], seed=1))
    assert cells(sheet)["after block1"] == "0.625 ± 0.125"


def test_of_several_rates_the_best_is_shown() -> None:
    runs = [
        _run(bits, [cosine], config={"lr": lr}) for bits, cosine, lr in ((2.5, 0.25, 0.1), (2.0, 0.5, 0.2))
    ]
    sheet = _sheet(*runs)
    assert len(sheet.rows) == 1
    assert (cells(sheet)["after block1"], cells(sheet)["learning rate"]) == ("0.500", "0.2")
    assert cells(sheet)["method"] == "local_loss"


def test_without_credit_that_was_measured_there_is_nothing() -> None:
    (table,) = language(gpt_run(), late(1))
    assert (agreement_sheets(table), agreement_plots(table), agreement_groups(table)) == ([], [], [])


# The plot


def test_bits_lost_over_the_cosine_at_the_lowest_interface() -> None:
    runs = [
        *(gpt_run(bits=(2.0 + k,), seed=k) for k in (0, 1)),
        *(_run(2.5 + 1.5 * k, [0.25 + k / 2, 0.9], seed=k) for k in (0, 1)),
        _run(2.25, [0.75], "head_gradient"),
        late(1),
    ]
    plot = _plot(*runs)
    points = {line.name: line.points for line in plot.lines}
    assert list(points) == ["backprop", "1  head_gradient", "2  local_loss"]  # those that lose least first
    assert points["1  head_gradient"] == ((0.75, 0.25, 0.0, 0.0),)
    assert points["2  local_loss"] == ((0.5, 0.75, 0.25, 0.25),)
    assert {p[1] for p in points["backprop"]} == {0.0}
    assert {
        "cosine with the true gradient, lowest interface",
        "bits per character above backprop",
    } <= (set(texts(plot)))
    assert len({(line.colour, line.marker) for line in plot.lines}) == 3
    assert {"1", "2"} <= set(texts(plot))  # beside the points
    assert plot.x_range == (-0.02, 0.8)


def test_without_backprop_nothing_is_lost() -> None:
    (table,) = language(_run(2.5, [0.5]))
    assert agreement_plots(table) == []
    assert "difference to backprop, validation" not in _sheet(_run(2.5, [0.5])).headings


def test_negative_cosines_are_inside() -> None:
    assert _plot(gpt_run(), _run(2.5, [-0.25])).x_range == (-0.27, 0.05)
