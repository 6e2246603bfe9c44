"""Curves and the quality of interfaces: which plots there are, and what is drawn in them."""

from __future__ import annotations

import re
from typing import Any

import pytest

from synthgrad.lab.report.grids import sparse_sweeps
from synthgrad.lab.report.plot import Group, draw, thin
from synthgrad.lab.report.plots import lag_plot, sparse_group, table_groups
from tests.lab.report.helpers import failed, frame, point, record, tables, texts


def _groups(*records: dict[str, Any]) -> list[Group]:
    (table,) = tables(records)
    return table_groups(table)


def _quality(step: int, **cosines: float | None) -> dict[str, Any]:
    return point(step, quality={n: {"cosine": c, "relative_error": 0.5} for n, c in cosines.items()})


# Curves


def test_eight_plots_in_two_groups() -> None:
    titles = ["test error", "training error", "test loss", "training loss"]
    groups = _groups(record(), record("dni"))
    assert [group.heading for group in groups] == ["Over steps", "Over seconds of training"]
    assert [[plot.title for plot in group.plots] for group in groups] == [titles, titles]


def test_older_records_have_no_training_error() -> None:
    curve = [{k: v for k, v in point(s).items() if k != "train_error_pct"} for s in (10, 20)]
    titles = [plot.title for plot in _groups(record(curve=curve))[0].plots]
    assert titles == ["test error", "test loss", "training loss"]


def test_times_that_cannot_be_compared_are_not_drawn() -> None:
    other = record("dni", env={"device": "a processor", "threads": 1})
    assert [group.heading for group in _groups(record(), other)] == ["Over steps"]


@pytest.mark.parametrize("status", ["diverged", "failed"])
def test_a_run_that_ended_early_has_a_cross(status: str) -> None:
    well, ended = (_groups(record(status=s))[0].plots[0] for s in ("ok", status))
    assert (well.lines[0].name, well.lines[0].ended) == ("backprop", False)
    assert (ended.lines[0].name, ended.lines[0].ended) == ("backprop ×", True)
    assert draw(ended).count("<use") > draw(well).count("<use")


def test_some_of_the_seeds_ended_early() -> None:
    plot = _groups(record(), record(seed=1, status="diverged"))[0].plots[0]
    assert "backprop × (1 of 2)" in texts(plot)


def test_a_loss_that_exploded_does_not_squeeze_the_others() -> None:
    wild = record("dni", status="diverged", curve=[point(10), point(20, train_loss=1e25)])
    (plot,) = [p for p in _groups(record(), wild)[0].plots if p.title == "training loss"]
    numbers = [float(t) for t in texts(plot) if re.fullmatch(r"[\d.e+]+", t)]
    assert max(n for n in numbers if n not in (10, 20, 30)) < 1e3


def _paths(svg: str) -> list[str]:
    return re.findall(r'd="(M [^"]*)"', svg)


def test_long_curves_are_thinned() -> None:
    curve = [point(s, test_error_pct=40 + 30 * (-1) ** s) for s in range(1, 20_000)]
    svg = draw(_groups(record(curve=curve))[0].plots[0])
    assert max(path.count("L") for path in _paths(svg)) <= 300
    assert len(svg) < 60_000


def test_ten_seeds_of_a_row_are_drawn() -> None:
    def num_lines(seeds: int) -> int:
        svg = draw(_groups(*(record(seed=k) for k in range(seeds)))[0].plots[0])
        return sum("stroke: var(--c0)" in path for path in re.findall(r"<path[^>]*>", svg))

    assert num_lines(3) - num_lines(2) == 1
    assert num_lines(2) - num_lines(1) == 2  # and their median
    assert num_lines(40) == num_lines(10)


def test_many_rows_are_cut_to_the_best() -> None:
    rows = [
        record("dni", config={"rule": {"hidden": [n]}}, metrics={"test_error_pct": float(n)})
        for n in range(1, 12)
    ]
    group = _groups(*rows)[0]
    labels = texts(group.plots[0])
    assert "dni (hidden 8)" in labels
    assert "dni (hidden 9)" not in labels
    assert "3 more are not" in group.note


@pytest.mark.parametrize("num", [1, 2, 299, 300, 301, 5000])
def test_thin_keeps_both_ends(num: int) -> None:
    points = [(float(k), 0.0) for k in range(num)]
    found = thin(points)
    assert len(found) == min(num, 300)
    assert (found[0], found[-1]) == (points[0], points[-1])
    assert found == sorted(set(found))


def test_no_error_at_all_is_drawn_at_the_lower_edge() -> None:
    curve = [point(10), point(20, test_error_pct=0.0), point(30)]
    svg = draw(_groups(record(curve=curve))[0].plots[0])
    blue = re.findall(r'd="(M [^"]*)"[^>]*stroke: var\(--c0\)', svg)
    line = next(path for path in blue if path.count("L") == 2)  # the legend has another, later
    heights = [float(y) for y in re.findall(r"[ML] \S+ (\S+)", line)]
    assert heights[1] == max(heights) > heights[2] > heights[0]  # SVG counts downwards
    assert "test error (%), 0 at edge" in svg


def test_interfaces_are_named_in_the_order_of_their_numbers() -> None:
    curve = [_quality(10, layer10=0.5), _quality(20, layer2=0.5), _quality(30, layer1=0.5, layer2=0.5)]
    group = _drawn(record("dni", curve=curve))
    assert group is not None
    labels = [t for t in texts(group.plots[0]) if t.startswith("after")]
    assert labels == ["after layer1", "after layer2", "after layer10"]


# Quality


def _drawn(*records: dict[str, Any]) -> Group | None:
    return next((group for group in _groups(*records) if group.heading.startswith("Quality")), None)


def test_no_measurements_no_group() -> None:
    assert _drawn(record()) is None


def test_two_plots_for_each_method_that_was_measured() -> None:
    curve = [_quality(10, layer1=0.5), _quality(20, layer1=0.6)]
    group = _drawn(record(), record("dni", curve=curve), record("cdni", curve=curve))
    assert group is not None
    assert [plot.title for plot in group.plots] == [
        *("dni: cosine", "dni: relative error"),
        *("cdni: cosine", "cdni: relative error"),
    ]


def test_cosines_are_means_over_seeds() -> None:
    def drawn(*cosines: float) -> str:
        runs = [
            record("dni", k, curve=[_quality(10, a=c), _quality(20, a=c / 2)]) for k, c in enumerate(cosines)
        ]
        group = _drawn(*runs)
        assert group is not None
        return draw(group.plots[0])

    assert drawn(0.2, 0.6) == drawn(0.4)
    assert drawn(0.2, 0.6) != drawn(0.6)


def test_missing_measurements_are_passed_over() -> None:
    group = _drawn(record("dni", curve=[_quality(10, a=None, b=0.5), _quality(20, a=0.5, b=0.5)]))
    assert group is not None
    assert {"after a", "after b"} <= set(texts(group.plots[0]))


def test_of_many_interfaces_some_are_named() -> None:
    names = {f"layer{k}": 0.5 for k in range(1, 32)}
    group = _drawn(record("dni", curve=[_quality(10, **names), _quality(20, **names)]))
    assert group is not None
    labels = [t for t in texts(group.plots[0]) if t.startswith("after")]
    assert len(labels) == 8
    assert (labels[0], labels[-1]) == ("after layer1", "after layer31")


# Sweeps


def _lag(method: str, lag: int, error: float, seed: int = 0) -> dict[str, Any]:
    config = {"lr": 3e-4, "target_error_pct": 2.0, "rule": {"delay": lag} if lag else {}}
    return record(method, seed, experiment="lag", metrics={"test_error_pct": error}, config=config)


def test_every_lag_stands_on_the_axis_and_every_method_in_the_legend() -> None:
    runs = [
        *(_lag("backprop", 0, 2.0 + k, k) for k in (0, 1)),
        *(_lag(m, n, 2 + n / 8 + k, k) for m in ("cdni", "delayed") for n in (0, 4, 64) for k in (0, 1)),
    ]
    (table,) = tables([*runs, failed("no reason", "dni", experiment="lag", config=runs[0]["config"])])
    plot = lag_plot(table)
    assert {"0", "4", "64", "backprop", "cdni", "delayed", "lag of the messages (steps)"} <= set(texts(plot))
    assert "dni" not in texts(plot)
    (cdni,) = [line for line in plot.lines if line.name == "cdni"]
    assert cdni.points == ((0.0, 2.5, 0.5, 0.5), (4.0, 3.0, 0.5, 0.5), (64.0, 10.5, 0.5, 0.5))
    assert [line.points[0][1] for line in plot.lines if line.name == "backprop"] == [2.5]


def _sparse(method: str, prob: float, steps: int, error: float, seed: int = 0) -> dict[str, Any]:
    cell = record()["cell"] | {"update_prob": prob}
    metrics = {"test_error_pct": error}
    return record(method, seed, experiment="sparse", steps=steps, cell=cell, metrics=metrics)


def test_equal_updates_are_solid_and_equal_steps_dashed() -> None:
    runs = [_sparse("cdni", 1.0, 100, 2.0), _sparse("cdni", 0.5, 200, 3.0), _sparse("cdni", 0.5, 100, 5.0)]
    (sweep,) = sparse_sweeps(frame([*runs, _sparse("cdni", 0.5, 100, 7.0, 1)]))
    (plot,) = sparse_group(sweep).plots
    drawn = {line.dash: line.points for line in plot.lines if line.points}
    assert drawn == {
        0: ((0.5, 3.0, 0.0, 0.0), (1.0, 2.0, 0.0, 0.0)),
        1: ((0.5, 6.0, 1.0, 1.0), (1.0, 2.0, 0.0, 0.0)),
    }
    assert {"cdni", "equal updates", "equal steps", "probability of an update, p"} <= set(texts(plot))
