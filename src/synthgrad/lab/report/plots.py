"""Which plots the tables of trainings have: descriptions, made of the points of curves and of finished runs."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd

from . import published
from .curves import (
    AMOUNTS,
    SECONDS,
    STEPS,
    TRAINING_BITS,
    VALIDATION_BITS,
    Axis,
    curves,
    flat,
    means_of,
    median_of,
    points_of,
    scaled,
)
from .frame import figures, first, good, groups, records_of, where
from .grids import EQUAL_STEPS, EQUAL_UPDATES, MANY, Sweep
from .labels import position
from .measures import ERROR, Measure, mean, measure_named
from .plot import COLOURS, DASHES, Group, Line, Plot, styled, thin
from .trainings import Table
from .unrolls import UnrollSweep
from .words import natural, text

__all__ = [
    "OVER",
    "has_lags",
    "lag_plot",
    "measure_plot",
    "sparse_group",
    "sweep_groups",
    "table_groups",
    "unroll_plot",
]

_MOST_ROWS = len(COLOURS)  # of a table that are drawn
#: What a picture for a document can run over.
OVER = ("data", "seconds", "unroll", "lag", "cosine", "weight")
_BARS = "Bars reach from the best to the worst seed; every point is the mean of its runs."
_SEEDS = "Thin: every seed. Bold: their median, as far as all of them go."
_STEEP = "What is steep at the beginning may lie above the axes."
_QUALITY = {"cosine": "cosine with the true message", "relative_error": "relative error"}
_QUALITY_NOTE = (
    "The credit that a module learns from, held against the true message when that comes: a cosine of 1 is its "
    "direction, a relative error of 1 is no better than no credit at all. Means over seeds."
)


_HEIGHTS = tuple(
    Axis(f"{part}_{what}", title := f"{words} {what.partition('_')[0]}", title, unit, "log")
    for what, unit in (("error_pct", "%"), ("loss", "nats"))
    for part, words in (("test", "test"), ("val", "validation"), ("train", "training"))
)
_RECURRENT = (
    Axis("sequence_length", "sequence length", "longest sequence solved", kind="stairs"),
    VALIDATION_BITS,
    Axis("a_accuracy_pct", "accuracy of A", "accuracy of A", "%"),
    Axis("b_accuracy_pct", "accuracy of B", "accuracy of B", "%"),
    TRAINING_BITS,
)


def has_lags(table: Table) -> bool:
    """Are these runs of the sweep over lags?"""
    return all(r.experiment == "lag" for r in table.records)


def table_groups(table: Table) -> list[Group]:
    """Return the plots of a table of trainings: over steps or data, over seconds where times may be compared."""
    points, more = _drawn(table)
    data, heights = _measured(points, table.recurrent)
    found = [Group("Test error over lag", [lag_plot(table)], _BARS)] if has_lags(table) else []
    for place in (data, SECONDS) if table.timed else (data,):
        plots = [plot for k, height in enumerate(heights) if (plot := curves(points, place, height, data, k))]
        note = f"{_SEEDS} " if points.groupby("label")["run"].nunique().max() > 1 else ""
        note += f"The rows with the least error are drawn, {more} more are not." if more else ""
        found += [Group(place.title, plots, note.strip())] if plots else []
    return [*found, *_quality_group(points, STEPS, "Quality of each interface")]


def _drawn(table: Table) -> tuple[pd.DataFrame, int]:
    """Return the points of the rows to draw, those with the least error if there are many; how many more there are."""
    runs = pd.concat(table.rows())
    runs = where(runs, (len(r.curve) > 0 for r in records_of(runs)))
    error = Measure(f"{table.part}_error_pct", "", 2)
    means = {row: mean(error.values(own)) for row, own in groups(runs, "label")}
    errors = {row: float("inf") if found is None else found for row, found in means.items()}
    best = sorted(errors, key=errors.__getitem__)[:_MOST_ROWS]
    return points_of(runs[runs["label"].isin(best)]), len(errors) - len(best)


def _measured(points: pd.DataFrame, recurrent: bool) -> tuple[Axis, list[Axis]]:
    """Return the amount of data that was measured, and what the curves show."""
    known = {name for name in points if points[name].notna().any()}
    found = [height for height in (_RECURRENT if recurrent else _HEIGHTS) if height.name in known]
    # What training measures itself need not stand beside the length of sequences.
    heights = [h for h in found if not (found[0].kind == "stairs" and h.kind == "falls")]
    return next((axis for axis in AMOUNTS if axis.name in known), STEPS) if recurrent else STEPS, heights


def measure_plot(table: Table, of: str = "", over: str = "data") -> Plot | None:
    """Return one plot of recurrent runs: of what ``of`` names, else of the first thing that their curves have."""
    points, _ = _drawn(table)
    data, heights = _measured(points, recurrent=True)
    chosen = [axis for axis in (_RECURRENT if of else heights) if of in ("", axis.name)]
    return curves(points, SECONDS if over == "seconds" else data, chosen[0], data) if chosen else None


# Sweeps over lengths of unrolls


def sweep_groups(sweep: UnrollSweep) -> list[Group]:
    """Return the plots of a sweep: over data, over seconds where times may be compared, and over ``T``."""
    points, data, height = _sweep_points(sweep)
    found: list[Group] = []
    for place in (data, SECONDS) if sweep.timed else (data,):
        plots = [_together(points, place, height, data)]
        for unroll, own in sorted(groups(points, "unroll")):
            plot = curves(own, place, height, data, 1)
            plots += [replace(plot, title=f"T={unroll:g}: {plot.title}")] if plot else []
        note = f"First the medians over the seeds for several lengths together, then each length. {_SEEDS}"
        note += f" {_STEEP}" if height.kind == "falls" else ""
        found += [Group(place.title, plots, note)] if len(plots) > 1 else []
    over = _over_unrolls(sweep)
    found += [Group("Over the length of unrolls", [over], _BARS)] if over else []
    return [*found, *_quality_group(points, data, "Quality at the end of unrolls")]


def _sweep_points(sweep: UnrollSweep) -> tuple[pd.DataFrame, Axis, Axis]:
    """Return the points of a sweep's first rows, the amount of data that they name, and what they are measured by."""
    points = points_of(pd.concat(sweep.rows()[: _MOST_ROWS - 1]))
    data = next(axis for axis in AMOUNTS if axis.name == sweep.kind.data)
    return points, data, next(axis for axis in _RECURRENT if axis.name == sweep.kind.level)


def unroll_plot(sweep: UnrollSweep, over: str = "data") -> Plot | None:
    """Return the main plot of a sweep: of one length every seed is drawn, of several the medians.

    Args:
        sweep: the runs.
        over: ``data``, ``seconds``, or ``unroll`` for what was reached at the end, over ``T``.
    """
    if over == "unroll":
        return _over_unrolls(sweep)
    points, data, height = _sweep_points(sweep)
    draw = _together if len(sweep.unrolls) > 1 else curves
    return draw(points, data if over == "data" else SECONDS, height, data)


def _together(points: pd.DataFrame, place: Axis, height: Axis, data: Axis) -> Plot:
    """Return the plot of all lengths: a colour for each row, dashes for each length; medians only."""
    unrolls = thin(sorted(set(points["unroll"])), len(DASHES))
    styles = styled(list(dict.fromkeys(points["label"])))
    lines = [
        Line(
            "",
            median_of(own, place, height, data),
            styles[row][0],
            unrolls.index(unroll),
            stairs=height.kind == "stairs",
        )
        for (row, unroll), own in groups(points, "label", "unroll")
        if unroll in unrolls
    ]
    lines += [Line(row, (), colour, 0, width=2.2) for row, (colour, _) in styles.items()]
    lines += [Line(f"T={unroll:g}", (), len(COLOURS) - 1, k) for k, unroll in enumerate(unrolls)]
    about = f"{height.title} over {place.label}: {', '.join(styles)}, medians, for several T"
    plot = Plot(
        f"{height.title}, T together", "", height.words, tuple(lines), about, log_y=height.kind == "falls"
    )
    return scaled(plot, place, height)


def _over_unrolls(sweep: UnrollSweep) -> Plot | None:
    """Return the plot of what was reached at the end, over ``T``, with the published figures."""
    measure = measure_named(sweep.kind.metric)
    ours: list[Line] = []
    theirs: list[Line] = []
    rows = {runs["label"].iloc[0]: runs for runs in sweep.rows()[: _MOST_ROWS - 1]}
    for row, (colour, _) in styled(list(rows)).items():
        ours.append(Line(row, means_of(rows[row], measure, "unroll"), colour, marker="o"))
        cells = {unroll: first(own) for unroll, own in sorted(groups(rows[row], "unroll"))}
        found = {unroll: published.recurrent_figure(r.cell, r.method) for unroll, r in cells.items()}
        known = flat((unroll, figure.value) for unroll, figure in found.items() if figure is not None)
        theirs += [Line("", known, colour, 3, "s", hollow=True)] if known else []
    signs = (
        [Line("these runs", (), 6, marker="o"), Line("published", (), 6, 3, "s", hollow=True)]
        if theirs
        else []
    )
    about = f"{measure.heading} over the length of unrolls: {', '.join(rows)}"
    ticks, lines = tuple(thin(sweep.unrolls, 10)), (*ours, *theirs, *signs)
    plot = Plot(measure.heading, "T, steps of an unroll", measure.heading, lines, about, ticks=ticks)
    plot = replace(plot, y_range=(None if sweep.kind.least else 0.0, None))
    return plot if any(line.points for line in ours) else None


# Test errors over what differs


def lag_plot(table: Table) -> Plot:
    """Return the plot of a sweep over lags: a line for each method, dotted for what has no lag."""
    runs = pd.concat(table.rows())
    runs["lag"] = [r.config.rule.delay or 0.0 for r in records_of(runs)]
    lines: list[Line] = []
    for method, own in groups(runs, "method")[:_MOST_ROWS]:
        colour = position(method) % len(COLOURS)  # as in every plot of the page
        if (
            method == "backprop"
            and (middle := mean(figures(good(own), f"metrics.{ERROR.metric}"))) is not None
        ):
            lines.append(Line(method, flat((lag, middle) for lag in (0.0, runs["lag"].max())), colour, 3))
        else:
            points = means_of(own, ERROR, "lag")
            lines += [Line(method, points, colour, marker="o")] if points else []
    about = "test error over lag: " + ", ".join(line.name for line in lines)
    ticks = tuple(sorted(set(runs.loc[runs["method"] != "backprop", "lag"])))
    labels = ("test error", "lag of the messages (steps)", "test error (%)")
    return Plot(*labels, tuple(lines), about, log_y=True, ticks=ticks)


def sparse_group(sweep: Sweep) -> Group:
    """Return the plot of a sweep over update probabilities: solid at equal updates, dashed at equal steps."""
    lines: list[Line] = []
    drawn: dict[str, Line] = {}
    for method in sweep.methods:
        own = sweep.runs[sweep.runs["method"] == method]
        colour = position(method) % len(COLOURS)  # as in every plot of the page
        lines.append(Line(method, (), colour, width=2.2))
        for dash, kind in enumerate((EQUAL_UPDATES, EQUAL_STEPS)):
            points = means_of(where(own, (kind in kinds for kinds in own["kinds"])), ERROR, "prob")
            # p = 1 alone stands on the other line already.
            if points and not (kind == EQUAL_STEPS and len(points) == 1 and EQUAL_UPDATES in drawn):
                drawn[kind] = Line(kind, (), len(COLOURS) - 1, dash, "os"[dash], hollow=dash == 1)
                joined = None if len(points) > MANY else dash
                lines.append(replace(drawn[kind], name="", points=points, colour=colour, dash=joined))
    about = "test error over the probability of an update: " + ", ".join(sweep.methods)
    labels = ("test error", "probability of an update, p", "test error (%)")
    plot = Plot(*labels, (*lines, *drawn.values()), about, log_y=True)
    return Group("Test error over p", [plot], _BARS)


# Quality of the credit


def _quality_group(points: pd.DataFrame, place: Axis, heading: str) -> list[Group]:
    """Return two plots for each row whose interfaces were measured, with a line for each interface and length."""
    rows = [(row, measure, own) for row, own in groups(points, "label") for measure in _QUALITY]
    plots = [plot for row, measure, own in rows if (plot := _quality_plot(row, measure, own, place))]
    return [Group(heading, plots, _QUALITY_NOTE)] if plots else []


def _quality_plot(row: str, measure: str, points: pd.DataFrame, place: Axis) -> Plot | None:
    found = pd.DataFrame(
        [
            (p["unroll"], name, p.get(place.name), values.get(measure))
            for p in points.to_dict("records")
            for name, values in p["quality"].items()
        ],
        columns=["unroll", "interface", "at", "value"],
    ).astype({"at": float, "value": float})
    found = found.dropna(subset=["at", "value"])
    if not len(found):
        return None
    several, cosine = found["interface"].nunique() > 1, measure == "cosine"

    def named(unroll: float, interface: str) -> str:
        words = f", {text(interface, 30)}" if several else ""
        return f"T={unroll:g}{words}" if unroll == unroll else f"after {text(interface, 30)}"

    means = {
        named(*k): flat(own.groupby("at")["value"].mean().items())
        for k, own in groups(found, "unroll", "interface")
    }
    lines = [
        Line(name, means[name], k, k % len(DASHES), "." if len(means[name]) < 12 else "")
        for k, name in enumerate(thin(sorted(means, key=natural), len(COLOURS)))
    ]
    title = f"{row}: {measure.replace('_', ' ')}"
    y_range = (min(0.0, float(found["value"].min())) - 0.05, 1.05) if cosine else (None, None)
    log = False if cosine else None
    plot = Plot(
        title, "", _QUALITY[measure], tuple(lines), rank=4 if cosine else 5, y_range=y_range, log_y=log
    )
    return scaled(plot, place, Axis("", "", ""))
