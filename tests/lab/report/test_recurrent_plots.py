"""Plots of recurrent runs: medians worked out by hand, which plots there are, and what is drawn in them."""

from __future__ import annotations

import re
from statistics import median
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from synthgrad.lab.report.plot import Group, Line, Plot, draw
from synthgrad.lab.report.plots import measure_plot, sweep_groups, table_groups, unroll_plot
from tests.lab.report.helpers import sweeps, tables, texts
from tests.lab.report.recurrent import bad, clocked_run, copy_run, text_run

METHODS = ("bptt", "dni", "dni_aux")


def _table_groups(*records: dict[str, Any]) -> list[Group]:
    (table,) = tables(records)
    return table_groups(table)


def _sweep_groups(*records: dict[str, Any]) -> list[Group]:
    (sweep,) = sweeps(records)
    return sweep_groups(sweep)


def _line(plot: Plot, name: str) -> Line:
    (line,) = [line for line in plot.lines if line.name == name]
    return line


# Medians


def _bold(
    *curves: list[tuple[float, float, float]], make: Any = text_run, height: str
) -> list[tuple[float, float]]:
    """Return the median of runs that are given by data, time and height of their points."""
    data = "chars_seen" if make is text_run else "sequences_seen"
    runs = [
        make(seed=k, curve=[{data: a, "elapsed_s": t, height: b} for a, t, b in points])
        for k, points in enumerate(curves)
    ]
    plot = _table_groups(*runs)[1].plots[0]
    return [p[:2] for p in plot.lines[-1].points]


def test_stairs_last_until_the_next_point() -> None:
    curves = ([(2.0, 2.0, 4.0), (6.0, 6.0, 5.0)], [(4.0, 4.0, 4.0), (6.0, 6.0, 9.0)])
    found = _bold(*curves, make=copy_run, height="sequence_length")
    assert found == [(0.0, 0.0), (2.0, 2.0), (4.0, 4.0), (6.0, 7.0)]


def test_lines_change_evenly_and_go_as_far_as_all_curves() -> None:
    curves = (
        [(1.0, 1.0, 1.0), (5.0, 5.0, 9.0), (9.0, 9.0, 9.0)],
        [(2.0, 2.0, 3.0), (3.0, 3.0, 3.0), (6.0, 6.0, 3.0)],
    )
    assert _bold(*curves, height="val_bits_per_char") == [(2.0, 3.0), (3.0, 4.0), (5.0, 6.0), (6.0, 6.0)]


@settings(deadline=None, max_examples=20)
@given(st.lists(st.lists(st.floats(1, 100), min_size=3, max_size=3), min_size=2, max_size=5))
def test_at_equal_places_it_is_the_median_of_the_heights(heights: list[list[float]]) -> None:
    curves = [[(a, a, b) for a, b in zip((1.0, 2.0, 5.0), values, strict=True)] for values in heights]
    expected = [(a, median(values[k] for values in heights)) for k, a in enumerate((1.0, 2.0, 5.0))]
    assert _bold(*curves, height="val_bits_per_char") == expected


def test_seconds_are_compared_at_equal_data() -> None:
    # The second run is three times as slow on the same data. At equal seconds it would count as the worse learner.
    fast = [(5.0, 0.0, 5.0), (10.0, 1.0, 3.0), (20.0, 2.0, 1.0)]
    slow = [(seen, 3 * time, height) for seen, time, height in fast]
    assert _bold(fast, slow, height="val_bits_per_char") == [(0.0, 5.0), (2.0, 3.0), (4.0, 1.0)]


# Which plots there are


def _titles(groups: list[Group]) -> list[tuple[str, list[str]]]:
    return [(group.heading, [plot.title for plot in group.plots]) for group in groups]


def test_a_table_has_its_measures_over_data_and_over_seconds() -> None:
    groups = _table_groups(copy_run(), copy_run("dni"))
    assert _titles(groups) == [
        (heading, ["sequence length"]) for heading in ("Over sequences seen", "Over seconds of training")
    ]
    assert {"longest sequence solved", "training time (s)", "bptt", "dni"} <= set(texts(groups[1].plots[0]))


def test_text_has_training_beside_validation() -> None:
    (over_data, _) = _table_groups(text_run())
    assert [plot.title for plot in over_data.plots] == [
        "validation bits per character",
        "training bits per character",
    ]
    assert over_data.plots[0].x_label == "characters seen (thousands)"
    assert over_data.plots[0].y_label == "bits per character, validation"


def test_both_networks_have_a_plot() -> None:
    assert _titles(_table_groups(clocked_run(), clocked_run("dni"))) == [
        ("Over examples seen", ["accuracy of A", "accuracy of B"]),
        ("Over seconds of training", ["accuracy of A", "accuracy of B"]),
    ]


def test_where_nothing_counts_the_data_steps_do() -> None:
    curve = [{k: v for k, v in p.items() if k != "examples_seen"} for p in clocked_run()["curve"]]
    assert _table_groups(clocked_run(curve=curve))[0].heading == "Over steps"


def test_times_that_cannot_be_compared_are_not_drawn() -> None:
    other = copy_run("dni", env={"device": "a processor", "threads": 9})
    assert [g.heading for g in _table_groups(copy_run(), other)] == ["Over sequences seen"]
    found = _sweep_groups(copy_run(), other, copy_run(unroll=5))
    assert [g.heading for g in found] == ["Over sequences seen", "Over the length of unrolls"]


def test_a_sweep_has_all_lengths_together_then_each() -> None:
    groups = _sweep_groups(*(copy_run(m, unroll=u) for m in METHODS for u in (3, 5)))
    titles = ["sequence length, T together", "T=3: sequence length", "T=5: sequence length"]
    assert _titles(groups) == [
        ("Over sequences seen", titles),
        ("Over seconds of training", titles),
        ("Over the length of unrolls", ["sequence length"]),
    ]
    assert [p.rank for p in groups[0].plots] == [0, 1, 1]


# What is drawn


@pytest.mark.parametrize("make", [copy_run, text_run, clocked_run])
def test_methods_have_their_colours_in_every_plot(make: Any) -> None:
    methods = ("bptt", "cdni") if make is clocked_run else ("bptt", "dni_aux")
    for group in _table_groups(*(make(m) for m in methods)):
        for plot in group.plots:
            assert [line.colour for line in plot.lines] == [0, 3]
    assert _table_groups(make("dni"))[0].plots[0].lines[0].colour == 2


def test_stairs_begin_at_nothing_and_have_corners() -> None:
    (line,) = _table_groups(copy_run(lengths=(4, 6)))[0].plots[0].lines
    assert [p[:2] for p in line.points] == [(0.0, 0.0), (1000.0, 4.0), (2000.0, 6.0)]
    svg = draw(_table_groups(copy_run(lengths=(4, 6)))[0].plots[0])
    paths = re.findall(r'd="(M [^"]*)"[^>]*stroke: var\(--c0\)', svg)
    points = [tuple(map(float, p)) for p in re.findall(r"[ML] (\S+) (\S+)", max(paths, key=len))]
    assert len(points) == 5  # two steps up: each a corner more
    assert all(a[0] == b[0] or a[1] == b[1] for a, b in zip(points, points[1:], strict=False))


def test_every_seed_is_thin_and_the_median_bold() -> None:
    plot = _table_groups(*(text_run(seed=k, levels=(3.0, 2.0 + k / 10)) for k in range(3)))[0].plots[0]
    assert [line.faint for line in plot.lines] == [True, True, True, False]
    assert [p[1] for p in plot.lines[-1].points] == [3.0, 2.1]


def test_a_run_that_ended_early_has_a_cross_and_no_say_in_the_median() -> None:
    good = [text_run("dni", k) for k in range(2)]
    with_bad = _table_groups(*good, bad(text_run("dni", 2, levels=(9.0, 9.0, 9.0))))[0].plots[0]
    assert [line.ended for line in with_bad.lines] == [False, False, True, False]
    alone = _table_groups(*good)[0].plots[0]
    assert _line(with_bad, "dni × (1 of 3)").points == _line(alone, "dni").points


def test_a_steep_beginning_does_not_squeeze_the_end() -> None:
    levels = (8.0, *(2.0 - k / 100 for k in range(20)))
    low, high = _table_groups(text_run(levels=levels))[0].plots[0].y_range
    assert low is not None
    assert high is not None
    assert 1.7 < low < 1.81 < 1.99 < high < 2.1


@pytest.mark.parametrize(
    ("chars", "label", "last"),
    [
        (19_990, "characters seen", 19_990),
        (30_000, "characters seen (thousands)", 30.0),
        (3_000_000, "characters seen (millions)", 3.0),
    ],
)
def test_large_amounts_are_counted_in_larger_units(chars: int, label: str, last: float) -> None:
    curve = [{"chars_seen": chars, "elapsed_s": 36_000.0, "val_bits_per_char": 2.0}]
    over_data, over_seconds = (group.plots[0] for group in _table_groups(text_run(curve=curve)))
    assert (over_data.x_label, over_data.lines[0].points[0][0]) == (label, last)
    assert (over_seconds.x_label, over_seconds.lines[0].points[0][0]) == ("training time (hours)", 10.0)


def test_lengths_together_have_a_dash_each_the_shortest_none() -> None:
    runs = [copy_run(m, unroll=u) for m in METHODS for u in (2, 3, 4, 5, 8, 20, 40)]
    plot = _sweep_groups(*runs)[0].plots[0]
    assert [t for t in texts(plot) if t.startswith("T=")] == ["T=2", "T=4", "T=8", "T=40"]
    assert [line.dash for line in plot.lines if line.name.startswith("T=")] == [0, 1, 2, 3]
    assert len({(line.colour, line.dash) for line in plot.lines if line.points}) == 12


def test_the_end_over_t_stands_beside_the_published_figures() -> None:
    runs = [copy_run(m, seed, u, (4, 5 + seed)) for m in METHODS for seed in (0, 1) for u in (3, 5)]
    plot = _sweep_groups(*runs)[-1].plots[0]
    assert _line(plot, "bptt").points == ((3.0, 5.5, 0.5, 0.5), (5.0, 5.5, 0.5, 0.5))
    published = [line.points for line in plot.lines if not line.name]
    assert published[0] == ((3.0, 8.0, 0.0, 0.0), (5.0, 8.0, 0.0, 0.0))
    assert {"these runs", "published", "T, steps of an unroll", "sequence length", "3", "5"} <= set(
        texts(plot)
    )
    # None is black because nothing is said: it could not be seen in the dark.
    samples = [dot for dot in re.findall(r"<use[^>]*>", draw(plot)) if "--c6" in dot]
    assert [re.findall(r"fill[^;]*", dot) for dot in samples] == [["fill: var(--c6)"], ["fill-opacity: 0"]]
    other = _sweep_groups(*(text_run(unroll=u, data="shakespeare") for u in (5, 10)))[-1].plots[0]
    assert "published" not in texts(other)


def test_only_bad_runs_have_no_end() -> None:
    groups = _sweep_groups(*(bad(copy_run(unroll=u)) for u in (3, 5)))
    assert [g.heading for g in groups] == ["Over sequences seen", "Over seconds of training"]
    assert all("<svg" in draw(plot) for group in groups for plot in group.plots)


def test_quality_has_a_line_for_each_length_over_data() -> None:
    def measured(run: dict[str, Any]) -> dict[str, Any]:
        quality = {"state": {"cosine": 0.5, "relative_error": 0.5}}
        return run | {"curve": [p | {"quality": quality} for p in run["curve"]]}

    runs = [measured(copy_run("dni", k, u)) for k in range(2) for u in (3, 5)]
    group = _sweep_groups(*runs, copy_run(unroll=3))[-1]
    assert [plot.title for plot in group.plots] == ["dni: cosine", "dni: relative error"]
    assert {"T=3", "T=5", "sequences seen"} <= set(texts(group.plots[0]))
    assert not [g for g in _sweep_groups(copy_run(), copy_run(unroll=5)) if g.heading.startswith("Quality")]


# Plots for documents


def test_plots_of_a_sweep() -> None:
    (sweep,) = sweeps([copy_run(m, unroll=u) for m in METHODS for u in (3, 5)])
    labels = [plot.x_label for over in ("data", "seconds", "unroll") if (plot := unroll_plot(sweep, over))]
    assert labels == ["sequences seen", "training time (s)", "T, steps of an unroll"]
    together, alone = unroll_plot(sweep), unroll_plot(sweep.of(5))
    assert together is not None
    assert alone is not None
    assert ("T=5" in texts(together), "T=5" in texts(alone)) == (True, False)


def test_plots_of_two_networks() -> None:
    (table,) = tables([clocked_run(), clocked_run("dni")])
    first, second = measure_plot(table), measure_plot(table, "b_accuracy_pct", "seconds")
    assert first is not None
    assert second is not None
    assert (first.y_label, second.y_label, second.x_label) == (
        *("accuracy of A (%)", "accuracy of B (%)"),
        "training time (s)",
    )
    assert measure_plot(table, "bits_per_char") is None
    (empty,) = tables([clocked_run(curve=[])])
    assert measure_plot(empty) is None
