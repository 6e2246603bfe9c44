"""The curves of a table's runs: error and loss, in training and in test, over steps and over seconds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median
from typing import Any

from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from ..records import Record
from .fields import as_number, status
from .labels import place_of, row_label
from .plots import Group, Plot
from .summary import Table
from .svg import COLOURS, Legend, draw, line_style, log_scale, plain_axis, thin

__all__ = [
    "MOST_RUNS",
    "Points",
    "Runs",
    "capped",
    "curve_groups",
    "drawn_rows",
    "early_ends",
    "points_of",
    "styles_of",
]

MOST_RUNS = 10  # of a row that are drawn

Points = list[tuple[float, float]]

#: For each row the curves of its runs, and whether each came to a bad end.
Runs = dict[str, list[tuple[Points, bool]]]


def drawn_rows(table: Table) -> list[tuple[str, list[Record]]]:
    """Return the rows to draw, with the runs of each: those with the least error, if there are many."""
    groups: dict[str, list[Record]] = {}
    for record in table.records:
        if points_of(record):
            groups.setdefault(row_label(record), []).append(record)
    rows = [row for row in table.rows if row.method in groups]
    if len(rows) > len(COLOURS):
        best = sorted(rows, key=lambda row: math.inf if row.error_pct is None else row.error_pct)
        kept = {row.method for row in best[: len(COLOURS)]}
        rows = [row for row in rows if row.method in kept]
    return [(row.method, groups[row.method]) for row in rows]


def points_of(record: Record) -> list[dict[str, Any]]:
    """Return the points of a run's curve."""
    curve = record.get("curve")
    return [p for p in curve if isinstance(p, dict)] if isinstance(curve, list) else []


def styles_of(labels: Sequence[str]) -> list[dict[str, Any]]:
    """Return a style for each row: a method's own, the same in every plot, where it has one row only."""
    places = [place_of(label.partition(" ")[0]) for label in labels]
    own = len(set(places)) == len(places) and None not in places
    return [line_style(place if own and place is not None else k) for k, place in enumerate(places)]


def curve_groups(table: Table, salt: str) -> list[Group]:
    """Return the plots over steps, and those over seconds where times may be compared.

    Args:
        table: the runs.
        salt: tells this table's plots from those of the others on the page.
    """
    measured = "validation" if table.part == "val" else "test"
    heights = [
        (f"{measured} error", f"{table.part}_error_pct", "%"),
        ("training error", "train_error_pct", "%"),
        (f"{measured} loss", f"{table.part}_loss", "nats"),
        ("training loss", "train_loss", "nats"),
    ]
    widths = [("Over steps", "step", "step")]
    widths += [("Over seconds of training", "elapsed_s", "training time (s)")] if table.timed else []
    rows = drawn_rows(table)
    more = len({row_label(r) for r in table.records if points_of(r)}) - len(rows)
    groups: list[Group] = []
    for heading, x, x_label in widths:
        plots: list[Plot] = []
        for rank, (title, y, sign) in enumerate(heights):
            runs = _runs(rows, x, y)
            if runs:
                plots.append(_plot(title, runs, (x_label, f"{title} ({sign})"), f"{salt}-{x}-{y}", rank))
        note = "The rows with the least error are drawn" + f", {more} more are not." if more > 0 else ""
        if plots:
            groups.append(Group(heading, plots, note))
    return groups


def _runs(rows: Sequence[tuple[str, list[Record]]], x: str, y: str) -> Runs:
    """Return for each row the curves of its runs, and whether each came to a bad end."""
    found: Runs = {}
    for label, records in rows:
        for record in records[:MOST_RUNS]:
            pairs = [(as_number(p.get(x)), as_number(p.get(y))) for p in points_of(record)]
            points = [(a, b) for a, b in pairs if a is not None and b is not None]
            if points:
                found.setdefault(label, []).append((points, status(record) != "ok"))
    return found


def _plot(
    title: str,
    runs: Runs,
    axis_labels: tuple[str, str],
    salt: str,
    rank: int,
) -> Plot:
    def paint(axes: Axes) -> Legend:
        heights = [b for lines in runs.values() for points, _ in lines for _, b in points]
        above = [b for b in heights if b > 0]
        # An error of zero has no place on a logarithmic axis: it is drawn under all others.
        floor = min(above) / 2 if above else None
        handles = [
            _draw_row(axes, capped(lines, heights), style, floor)
            for lines, style in zip(runs.values(), styles_of(list(runs)), strict=True)
        ]
        labels = [label + early_ends(lines) for label, lines in runs.items()]
        zero = ", 0 at edge" if floor is not None and min(heights) <= 0 else ""
        axes.set(xlabel=axis_labels[0], ylabel=axis_labels[1] + zero)
        plain_axis(axes)
        if floor is not None:
            log_scale(axes)
            if zero:
                axes.set_ylim(bottom=floor)
        if any(bad for lines in runs.values() for _, bad in lines):
            handles.append(Line2D([], [], color="#000000", linestyle="none", marker="x", markeredgewidth=2))
            labels.append("ended early")
        return handles, labels

    about = f"{title} over {axis_labels[0]}: " + ", ".join(runs)
    return Plot(title, lambda: draw(paint, salt, about), rank)


def capped(lines: Sequence[tuple[Points, bool]], heights: Sequence[float]) -> list[tuple[Points, bool]]:
    """Cut off what a diverging run reached far above all others, or these could not be read."""
    top = 100 * median(heights)
    return [
        ([(a, min(b, top)) for a, b in points] if bad and top > 0 else points, bad) for points, bad in lines
    ]


def early_ends(lines: Sequence[tuple[Points, bool]]) -> str:
    """Return what a legend says of a row some of whose runs came to a bad end."""
    bad = sum(ended for _, ended in lines)
    return "" if not bad else " ×" if bad == len(lines) else f" × ({bad} of {len(lines)})"


def _draw_row(
    axes: Axes, lines: Sequence[tuple[Points, bool]], style: dict[str, Any], floor: float | None
) -> Line2D:
    """Draw every run of a row thin, in the row's style, with a cross where it ended before its time.

    Values below ``floor`` are drawn there.
    """
    alone = len(lines) == 1
    for points, bad in lines:
        shown = thin(points, 300 if len(lines) < 4 else 150)
        if floor is not None:
            shown = [(a, max(b, floor)) for a, b in shown]
        axes.plot(
            [a for a, _ in shown],
            [b for _, b in shown],
            linewidth=1.8 if alone else 1.0,
            alpha=0.95 if alone else 0.75,
            marker="." if len(shown) < 12 else None,
            **style,
        )
        if bad and shown:
            axes.plot(
                *([v] for v in shown[-1]),
                marker="x",
                markersize=9,
                markeredgewidth=2.2,
                color=style["color"],
                zorder=5,
            )
    return Line2D([], [], linewidth=1.8, **style)
