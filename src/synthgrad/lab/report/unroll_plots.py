"""Plots of recurrent runs over the length of their unrolls: all lengths together, each apart, and the end over T."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from statistics import mean
from typing import Any

from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator

from ..records import Record
from . import published
from .curves import points_of, styles_of
from .fields import part
from .measure_curves import Axis, Curves, curves_of, finish_axes, panel, panels_of
from .measures import measure_named, values_of
from .plots import Group, Plot
from .plotted import DATA, HEIGHTS, SECONDS, Height, Width
from .svg import COLOURS, DASHES, Legend, bars, draw
from .unrolls import UnrollSweep

__all__ = ["OVER", "unroll_groups", "unroll_picture"]

#: What a picture for a document can run over.
OVER = ("data", "seconds", "unroll")

_MOST_ROWS, _MOST_TICKS = len(COLOURS) - 1, 10
_NOTE = "First the medians over the seeds for several lengths of unrolls together, then each length with its seeds."


def unroll_groups(sweep: UnrollSweep, salt: str) -> list[Group]:
    """Return the plots of a sweep: over data, over seconds where times may be compared, and over ``T``.

    Args:
        sweep: the runs.
        salt: tells these plots from the others of the page.
    """
    panels = {f"T={unroll:g}": _rows(sweep.of(unroll)) for unroll in sweep.unrolls}
    together = {width.heading: width for width in (_data(sweep), SECONDS)}
    groups: list[Group] = []
    for group in panels_of(panels, salt, timed=sweep.timed):
        if (width := together.get(group.heading)) is not None:
            plots = [_together(sweep, width, salt), *group.plots]
            group = replace(group, plots=plots, note=f"{_NOTE} {group.note}".strip())
        groups.append(group)
    ends = _over_unrolls(sweep, salt)
    return [*groups, *([ends] if ends.plots else [])]


def unroll_picture(sweep: UnrollSweep, over: str = "data") -> str:
    """Return the main plot of a sweep as SVG text, to be made `standalone`.

    Args:
        sweep: the runs; of one length (see `UnrollSweep.of`) every seed is drawn, of several the medians.
        over: ``data``, ``seconds``, or ``unroll`` for what was reached at the end, over ``T``.

    Returns:
        The plot; empty if no run ended well.
    """
    if over == "unroll":
        return next((plot.draw() for plot in _over_unrolls(sweep, "unroll").plots), "")
    data, height = _data(sweep), _height(sweep)
    width = data if over == "data" else SECONDS
    if len(sweep.unrolls) > 1:
        return _together(sweep, width, "unroll").draw()
    return panel(height.title, curves_of(_rows(sweep), height, width, data), height, width, "unroll").draw()


def _data(sweep: UnrollSweep) -> Width:
    return next(width for width in DATA if width.name == sweep.kind.data)


def _height(sweep: UnrollSweep) -> Height:
    return next(height for height in HEIGHTS if height.name == sweep.kind.level)


def _rows(sweep: UnrollSweep) -> list[tuple[str, list[Record]]]:
    """Return the first rows, with those of their runs that have a curve."""
    found = {
        row: [r for u in sweep.unrolls for r in sweep.runs(row, u) if points_of(r)] for row in sweep.rows
    }
    return [(row, records) for row, records in found.items() if records][:_MOST_ROWS]


def _together(sweep: UnrollSweep, width: Width, salt: str) -> Plot:
    """Return the plot of all lengths: a colour for each row, dashes for each length; medians only."""
    data, height, unrolls = _data(sweep), _height(sweep), _spread(sweep.unrolls, len(DASHES))
    curves = {u: curves_of(_rows(sweep.of(u)), height, width, data) for u in unrolls}
    rows = [row for row in sweep.rows if any(row in by_row for by_row in curves.values())]
    colours = {row: style["color"] for row, style in zip(rows, styles_of(rows), strict=True)}
    ends = Axis.around([Curves([], c.bold) for by_row in curves.values() for c in by_row.values()], height)

    def paint(axes: Axes) -> Legend:
        size, words = width.scaled(ends.furthest)
        for by_row, dashes in zip(curves.values(), DASHES, strict=False):
            for row, found in by_row.items():
                axes.plot(
                    [a / size for a, _ in found.bold],
                    [b for _, b in found.bold],
                    color=colours[row],
                    linestyle=dashes,
                    linewidth=1.8,
                    drawstyle="steps-post" if height.stairs else "default",
                )
        axes.set(xlabel=words, ylabel=height.label)
        finish_axes(axes, height, ends, size)
        handles = [Line2D([], [], color=colour, linewidth=2.2) for colour in colours.values()]
        handles += [
            Line2D([], [], color=COLOURS[-1], linestyle=d) for d, _ in zip(DASHES, unrolls, strict=False)
        ]
        return handles, [*colours, *(f"T={unroll:g}" for unroll in unrolls)]

    about = f"{height.title} over {width.label}: {', '.join(rows)}, medians, for several T"
    title = f"{height.title}, T together"
    return Plot(title, lambda: draw(paint, f"{salt}-{width.name}-together", about), 0)


def _spread(unrolls: Sequence[float], most: int) -> list[float]:
    """Return at most so many of the lengths, the shortest and the longest among them."""
    if len(unrolls) <= most:
        return list(unrolls)
    return [unrolls[round(k * (len(unrolls) - 1) / (most - 1))] for k in range(most)]


def _over_unrolls(sweep: UnrollSweep, salt: str) -> Group:
    """Return the plot of what was reached at the end, over ``T``, with the published figures."""
    measure = measure_named(sweep.kind.metric)
    ours = {row: _reached(sweep, row) for row in sweep.rows[:_MOST_ROWS]}
    theirs = {row: _published(sweep, row) for row in ours}
    open_square: dict[str, Any] = {
        "linestyle": ":",
        "marker": "s",
        "markersize": 4.5,
        "markerfacecolor": "none",
    }

    def paint(axes: Axes) -> Legend:
        handles: list[Line2D] = []
        for row, style in zip(ours, styles_of(list(ours)), strict=True):
            colour = style["color"]
            bars(axes, ours[row], color=colour, linewidth=1.8)
            axes.plot(*zip(*theirs[row], strict=True), color=colour, **open_square) if theirs[row] else None
            handles.append(Line2D([], [], color=colour, linewidth=2.2))
        labels = list(ours)
        if any(theirs.values()):
            handles += [
                # Grey: matplotlib writes no black fill, and a page in the dark cannot give it a shade then.
                Line2D([], [], color=COLOURS[-2], marker="o", markersize=4.5),
                Line2D([], [], color=COLOURS[-2], **open_square),
            ]
            labels += ["these runs", "published"]
        if min(sweep.unrolls) > 0 and max(sweep.unrolls) >= 4 * min(sweep.unrolls):
            axes.set_xscale("log", base=2)
        axes.xaxis.set_minor_locator(NullLocator())
        ticks = _spread(sweep.unrolls, _MOST_TICKS)
        axes.set_xticks(ticks, [f"{unroll:g}" for unroll in ticks])
        axes.set(xlabel="T, steps of an unroll", ylabel=measure.heading)
        if not sweep.kind.least:
            axes.set_ylim(bottom=0)
        return handles, labels

    about = f"{measure.heading} over the length of unrolls: {', '.join(ours)}"
    plots = [Plot(measure.heading, lambda: draw(paint, f"{salt}-over-t", about), 0)]
    note = "Every point is the mean of its runs; bars reach from the best to the worst."
    return Group("Over the length of unrolls", plots if any(ours.values()) else [], note)


def _reached(sweep: UnrollSweep, row: str) -> list[tuple[float, float, float, float]]:
    """Return ``T``, the mean of the runs, and how far the least and the greatest lie from it."""
    found: list[tuple[float, float, float, float]] = []
    for unroll in sweep.unrolls:
        if values := values_of(sweep.runs(row, unroll), sweep.kind.metric):
            middle = mean(values)
            found.append((unroll, middle, middle - min(values), max(values) - middle))
    return found


def _published(sweep: UnrollSweep, row: str) -> list[tuple[float, float]]:
    found: list[tuple[float, float]] = []
    for unroll in sweep.unrolls:
        for record in sweep.runs(row, unroll)[:1]:
            figure = published.recurrent_figure(part(record, "cell"), record.get("method"))
            found += [] if figure is None else [(unroll, figure.value)]
    return found
