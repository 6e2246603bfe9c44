"""Plots of recurrent runs: medians worked out by hand, which plots there are, and what is drawn in them."""

from __future__ import annotations

import re
from statistics import median
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from synthgrad.lab.report import measure_picture, tabulate, unroll_picture, unroll_sweeps
from synthgrad.lab.report.measure_curves import measure_groups
from synthgrad.lab.report.medians import median_line, median_over_time
from synthgrad.lab.report.plots import Group
from synthgrad.lab.report.plotted import DATA, SECONDS
from synthgrad.lab.report.quality import unroll_quality
from synthgrad.lab.report.unroll_plots import unroll_groups
from tests.lab.report.helpers import record
from tests.lab.report.recurrent import bad, clocked_run, copy_run, text_run

METHODS = ("bptt", "dni", "dni_aux")


def _table_groups(*records: dict[str, Any]) -> list[Group]:
    (table,) = tabulate(records)
    return measure_groups(table, "t")


def _sweep_groups(*records: dict[str, Any]) -> list[Group]:
    (sweep,) = unroll_sweeps(records)
    return unroll_groups(sweep, "s")


def _texts(svg: str) -> list[str]:
    return re.findall(r"<text[^>]*>([^<]*)</text>", svg)


def _lines(svg: str, colour: int) -> list[str]:
    """Return the paths in a colour, those of the legend among them."""
    return re.findall(rf'd="(M [^"]*)"[^>]*stroke: var\(--c{colour}\)', svg)


# Medians


def test_stairs_last_until_the_next_point() -> None:
    curves = [[(0.0, 0.0), (2.0, 4.0), (6.0, 5.0)], [(0.0, 0.0), (4.0, 4.0), (6.0, 9.0)]]
    assert median_line(curves, stairs=True) == [(0.0, 0.0), (2.0, 2.0), (4.0, 4.0), (6.0, 7.0)]


def test_lines_change_evenly() -> None:
    curves = [[(0.0, 0.0), (4.0, 8.0)], [(0.0, 2.0), (1.0, 2.0), (4.0, 2.0)]]
    assert median_line(curves, stairs=False) == [(0.0, 1.0), (1.0, 2.0), (4.0, 5.0)]


def test_the_median_goes_as_far_as_all_curves() -> None:
    curves = [[(0.0, 1.0), (9.0, 1.0)], [(2.0, 3.0), (5.0, 3.0)]]
    assert median_line(curves, stairs=False) == [(2.0, 2.0), (5.0, 2.0)]
    assert median_line([[(0.0, 1.0)], [(2.0, 1.0)]], stairs=False) == []
    assert median_line([], stairs=True) == []


@given(
    st.lists(st.lists(st.floats(-100, 100), min_size=3, max_size=3), min_size=1, max_size=5),
    st.booleans(),
)
def test_at_equal_places_it_is_the_median_of_the_heights(heights: list[list[float]], stairs: bool) -> None:
    curves = [list(zip((1.0, 2.0, 5.0), values, strict=True)) for values in heights]
    expected = [(a, median(values[k] for values in heights)) for k, a in enumerate((1.0, 2.0, 5.0))]
    assert median_line(curves, stairs=stairs) == expected


def test_seconds_are_compared_at_equal_data() -> None:
    # The second run is three times as slow on the same data. At equal seconds it would count as the worse learner.
    fast = [(0.0, 0.0, 5.0), (10.0, 1.0, 3.0), (20.0, 2.0, 1.0)]
    slow = [(seen, 3 * time, height) for seen, time, height in fast]
    assert median_over_time([fast, slow], stairs=False) == [(0.0, 5.0), (2.0, 3.0), (4.0, 1.0)]


# Which plots there are


def test_a_table_has_its_measures_over_data_and_over_seconds() -> None:
    headings = ["Over sequences seen", "Over seconds of training"]
    groups = _table_groups(copy_run(), copy_run("dni"))
    assert [(g.heading, [p.title for p in g.plots]) for g in groups] == [
        (heading, ["sequence length"]) for heading in headings
    ]
    texts = _texts(groups[1].plots[0].draw())
    assert {"longest sequence solved", "training time (s)", "bptt", "dni"} <= set(texts)


def test_text_has_training_beside_validation_once() -> None:
    groups = _table_groups(text_run())
    assert [[p.title for p in g.plots] for g in groups] == [
        ["validation bits per character", "training bits per character"],
        ["validation bits per character"],
    ]
    texts = _texts(groups[0].plots[0].draw())
    assert {"bits per character, validation", "characters seen (thousands)"} <= set(texts)


def test_both_networks_have_a_plot() -> None:
    groups = _table_groups(clocked_run(), clocked_run("dni"))
    assert [(g.heading, [p.title for p in g.plots]) for g in groups] == [
        ("Over examples seen", ["accuracy of A", "accuracy of B"]),
        ("Over seconds of training", ["accuracy of A", "accuracy of B"]),
    ]
    assert "accuracy of B (%)" in _texts(groups[1].plots[1].draw())


def test_where_nothing_counts_the_data_steps_do() -> None:
    curve = [{k: v for k, v in p.items() if k != "examples_seen"} for p in clocked_run()["curve"]]
    assert _table_groups(clocked_run(curve=curve))[0].heading == "Over steps"


def test_times_that_cannot_be_compared_are_not_drawn() -> None:
    other = copy_run("dni", env={"device": "a processor", "threads": 9})
    assert [g.heading for g in _table_groups(copy_run(), other)] == ["Over sequences seen"]
    assert [g.heading for g in _sweep_groups(copy_run(), other, copy_run(unroll=5))] == [
        *("Over sequences seen", "Over the length of unrolls"),
    ]


def test_feed_forward_runs_have_none_of_these() -> None:
    assert _table_groups(record(curve=[{"step": 1, "elapsed_s": 1.0, "test_error_pct": 2.0}])) == []


def test_a_sweep_has_all_lengths_together_then_each() -> None:
    groups = _sweep_groups(*(copy_run(m, unroll=u) for m in METHODS for u in (3, 5)))
    assert [g.heading for g in groups] == [
        *("Over sequences seen", "Over seconds of training", "Over the length of unrolls"),
    ]
    titles = ["sequence length, T together", "T=3: sequence length", "T=5: sequence length"]
    assert [[p.title for p in g.plots] for g in groups] == [titles, titles, ["sequence length"]]
    assert [p.rank for p in groups[0].plots] == [0, 1, 1]


# What is drawn


@pytest.mark.parametrize("make", [copy_run, text_run, clocked_run])
def test_methods_have_their_colours_in_every_plot(make: Any) -> None:
    methods = ("bptt", "cdni") if make is clocked_run else ("bptt", "dni_aux")
    for group in _table_groups(*(make(m) for m in methods)):
        for plot in group.plots:
            svg = plot.draw()
            assert [bool(_lines(svg, colour)) for colour in range(4)] == [True, False, False, True]
    (group, *_) = _table_groups(make("dni"))
    assert _lines(group.plots[0].draw(), 2)


def test_stairs_begin_at_nothing_and_have_corners() -> None:
    svg = _table_groups(copy_run(lengths=(4, 6)))[0].plots[0].draw()
    stairs = max(_lines(svg, 0), key=lambda path: path.count("L"))
    points = [tuple(map(float, p)) for p in re.findall(r"[ML] (\S+) (\S+)", stairs)]
    assert len(points) == 5  # two steps up: each a corner more
    assert all(a[0] == b[0] or a[1] == b[1] for a, b in zip(points, points[1:], strict=False))
    assert len({y for _, y in points}) == 3


def test_every_seed_is_thin_and_the_median_bold() -> None:
    svg = _table_groups(*(text_run(seed=k, levels=(3.0, 2.0 + k / 10)) for k in range(3)))[0].plots[0].draw()
    widths = re.findall(r"stroke: var\(--c0\); stroke-(?:opacity: 0.5; stroke-)?width: ([\d.]+)", svg)
    assert sorted(widths) == ["0.8", "0.8", "0.8", "2", "2"]  # the last is the legend's


def test_a_run_that_ended_early_has_a_cross_and_no_say_in_the_median() -> None:
    good = [text_run("dni", k) for k in range(2)]
    with_bad = _table_groups(*good, bad(text_run("dni", 2, levels=(9.0, 9.0, 9.0))))[0].plots[0].draw()
    assert {"dni × (1 of 3)", "ended early"} <= set(_texts(with_bad))
    alone = _table_groups(*good)[0].plots[0].draw()
    bold = [re.findall(r'd="(M [^"]*)"[^>]*stroke-width: 2[;"]', svg) for svg in (with_bad, alone)]
    assert bold[0][0].count("L") == bold[1][0].count("L") == 2
    assert bold[0][0].split() == bold[1][0].split()


def test_a_steep_beginning_does_not_squeeze_the_end() -> None:
    levels = (8.0, *(2.0 - k / 100 for k in range(20)))
    svg = _table_groups(text_run(levels=levels))[0].plots[0].draw()
    numbers = [float(t) for t in _texts(svg) if re.fullmatch(r"[1-9]\.\d+", t)]
    assert numbers
    assert max(numbers) < 2.1


@pytest.mark.parametrize(
    ("furthest", "expected"),
    [
        (19_999.0, (1.0, "characters seen")),
        (20_000.0, (1e3, "characters seen (thousands)")),
        (3e8, (1e6, "characters seen (millions)")),
    ],
)
def test_large_amounts_are_counted_in_larger_units(furthest: float, expected: tuple[float, str]) -> None:
    (width,) = [w for w in DATA if w.name == "chars_seen"]
    assert width.scaled(furthest) == expected


def test_long_trainings_are_counted_in_hours() -> None:
    assert SECONDS.scaled(10_000.0) == (1.0, "training time (s)")
    assert SECONDS.scaled(36_000.0) == (3600.0, "training time (hours)")


def test_lengths_together_have_a_dash_each() -> None:
    runs = [copy_run(m, unroll=u) for m in METHODS for u in (2, 3, 4, 5, 8, 20, 40)]
    svg = _sweep_groups(*runs)[0].plots[0].draw()
    assert [t for t in _texts(svg) if t.startswith("T=")] == ["T=2", "T=4", "T=8", "T=40"]
    assert set(METHODS) <= set(_texts(svg))


def test_the_shortest_unrolls_are_solid_lines() -> None:
    svg = _sweep_groups(*(copy_run(unroll=u) for u in (3, 5)))[0].plots[0].draw()
    drawn = re.findall(r'style="([^"]*stroke: var\(--c0\)[^"]*)"', svg)
    assert ["dasharray" in style for style in drawn] == [False, True, False]  # the last is the legend's


def test_the_end_over_t_stands_beside_the_published_figures() -> None:
    runs = [copy_run(m, unroll=u) for m in METHODS for u in (3, 5)]
    svg = _sweep_groups(*runs)[-1].plots[0].draw()
    samples = [dot for dot in re.findall(r"<use[^>]*>", svg) if "--c6" in dot]
    # None is black because nothing is said: it could not be seen in the dark.
    assert [re.findall(r"fill[^;]*", dot) for dot in samples] == [["fill: var(--c6)"], ["fill-opacity: 0"]]
    texts = _texts(svg)
    assert {"these runs", "published", "T, steps of an unroll", "sequence length", "3", "5"} <= set(texts)
    other = [text_run(unroll=u, data="shakespeare") for u in (5, 10)]
    texts = _texts(_sweep_groups(*other)[-1].plots[0].draw())
    assert "bits per character" in texts
    assert "published" not in texts


def test_only_bad_runs_have_no_end() -> None:
    groups = _sweep_groups(*(bad(copy_run(unroll=u)) for u in (3, 5)))
    assert [g.heading for g in groups] == ["Over sequences seen", "Over seconds of training"]
    for group in groups:
        for plot in group.plots:
            assert "<svg" in plot.draw()


# Quality


def _measured(run: dict[str, Any], cosine: float) -> dict[str, Any]:
    quality = {"state": {"cosine": cosine, "relative_error": 0.5}}
    return run | {"curve": [p | {"quality": quality} for p in run["curve"]]}


def test_quality_has_a_line_for_each_length_over_data() -> None:
    runs = [_measured(copy_run("dni", k, u), 0.5) for k in range(2) for u in (3, 5)]
    (sweep,) = unroll_sweeps([*runs, copy_run(unroll=3)])
    group = unroll_quality(sweep, "s")
    assert group is not None
    assert [plot.title for plot in group.plots] == ["dni: cosine", "dni: relative error"]
    assert {"T=3", "T=5", "sequences seen"} <= set(_texts(group.plots[0].draw()))
    (unmeasured,) = unroll_sweeps([copy_run(unroll=3), copy_run(unroll=5)])
    assert unroll_quality(unmeasured, "s") is None


# Pictures for documents


def test_pictures_of_a_sweep() -> None:
    (sweep,) = unroll_sweeps([copy_run(m, unroll=u) for m in METHODS for u in (3, 5)])
    assert "sequences seen" in _texts(unroll_picture(sweep))
    assert "training time (s)" in _texts(unroll_picture(sweep, "seconds"))
    assert "T, steps of an unroll" in _texts(unroll_picture(sweep, "unroll"))
    assert "T=5" in _texts(unroll_picture(sweep))
    assert "T=5" not in _texts(unroll_picture(sweep.of(5)))


def test_pictures_of_two_networks() -> None:
    (table,) = tabulate([clocked_run(), clocked_run("dni")])
    assert "accuracy of A (%)" in _texts(measure_picture(table))
    over_seconds = _texts(measure_picture(table, "b_accuracy_pct", "seconds"))
    assert {"accuracy of B (%)", "training time (s)"} <= set(over_seconds)
    assert measure_picture(table, "bits_per_char") == ""
    (empty,) = tabulate([clocked_run(curve=[])])
    assert measure_picture(empty) == ""
