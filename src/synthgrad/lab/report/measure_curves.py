"""The curves of recurrent runs: what they are measured by, over data and over seconds; seeds thin, medians bold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from ..records import Record
from .curves import MOST_RUNS, Points, capped, drawn_rows, early_ends, points_of, styles_of
from .fields import as_number, status
from .medians import median_line, median_over_time
from .plots import Group, Plot
from .plotted import DATA, HEIGHTS, SECONDS, Height, Width
from .summary import Table
from .svg import Legend, draw, log_scale, plain_axis, thin

__all__ = [
    "Axis",
    "Curves",
    "Rows",
    "curves_of",
    "finish_axes",
    "measure_groups",
    "measure_picture",
    "panel",
    "panels_of",
]

T = TypeVar("T", Height, Width)

#: Rows of a plot: labels and their runs.
Rows = Sequence[tuple[str, list[Record]]]


@dataclass(frozen=True, slots=True)
class Curves:
    """The curves of a row.

    Attributes:
        runs: points of each run, and whether it came to a bad end.
        bold: their median, of those that came to a good one.
    """

    runs: list[tuple[Points, bool]]
    bold: Points


@dataclass(frozen=True, slots=True)
class Axis:
    """Where the axes of some plots end.

    Attributes:
        furthest: the last place.
        low, high: the least and the greatest height that is shown.
    """

    furthest: float
    low: float
    high: float

    @classmethod
    def around(cls, curves: Sequence[Curves], height: Height) -> Axis:
        """Return axes that hold all of some curves, but for the steep beginning of what falls."""
        points = [p for c in curves for points, bad in c.runs if not (bad and c.bold) for p in points]
        points += [p for c in curves for p in c.bold]
        furthest = max((a for a, _ in points), default=0.0)
        low = min((b for _, b in points), default=0.0)
        high = max((b for _, b in points), default=0.0)
        if height.falls:
            # Each by its own end: in seconds longer unrolls are over sooner.
            later = [b for c in curves for a, b in c.bold if a >= c.bold[-1][0] / 10]
            high = max(later, default=high)
        return cls(furthest, low, high)


def measure_groups(table: Table, salt: str) -> list[Group]:
    """Return the plots of a table's runs over data, and those over seconds where times may be compared.

    Args:
        table: the runs.
        salt: tells this table's plots from those of the others on the page.
    """
    return panels_of({"": drawn_rows(table)}, salt, timed=table.timed)


def measure_picture(table: Table, of: str = "", over: str = "data") -> str:
    """Return one plot of a table's runs as SVG text, to be made `standalone`.

    Args:
        table: the runs.
        of: what it shows, as points of the curves name it; empty for what comes first.
        over: ``data`` or ``seconds``.

    Returns:
        The plot; empty if no run measured such a thing.
    """
    rows = drawn_rows(table)
    points = [p for _, records in rows for r in records for p in points_of(r)]
    data = _first_measured(DATA, points)
    height = _first_measured([h for h in HEIGHTS if of in ("", h.name)], points)
    if data is None or height is None:
        return ""
    width = SECONDS if over == "seconds" else data
    curves = curves_of(rows, height, width, data)
    return panel(height.title, curves, height, width, "measure").draw() if curves else ""


def panels_of(panels: Mapping[str, Rows], salt: str, *, timed: bool) -> list[Group]:
    """Return a plot for each panel and each thing that was measured; those of one thing have the same heights.

    Args:
        panels: rows by what the panel's title says of them.
        salt: of the names inside the plots.
        timed: may times be compared?
    """
    points = [p for rows in panels.values() for _, records in rows for r in records for p in points_of(r)]
    data = _first_measured(DATA, points)
    heights = [h for h in HEIGHTS if any(as_number(p.get(h.name)) is not None for p in points)]
    if data is None:
        return []
    groups: list[Group] = []
    for width in (data, SECONDS) if timed else (data,):
        # What training measures itself stands beside the rest once, and not for every panel.
        drawn = heights if width is data and len(panels) == 1 else [h for h in heights if not h.beside]
        drawn = [h for h in drawn if not (h.beside and heights[0].stairs)]
        plots: list[Plot] = []
        for height in drawn:
            found = {name: curves_of(rows, height, width, data) for name, rows in panels.items()}
            whole = Axis.around([c for by_row in found.values() for c in by_row.values()], height)
            for k, (name, curves) in enumerate(found.items()):
                if not curves:
                    continue
                own = Axis.around(list(curves.values()), height)
                # Amounts of data are those of all panels, times are each panel's own.
                axis = whole if width is data else replace(whole, furthest=own.furthest)
                title = f"{name}: {height.title}" if name else height.title
                plots.append(
                    panel(title, curves, height, width, f"{salt}-{width.name}-{height.name}-{k}", axis)
                )
        if plots:
            groups.append(Group(width.heading, plots, _note(panels, drawn)))
    return groups


def _first_measured(choice: Sequence[T], points: Sequence[Mapping[str, Any]]) -> T | None:
    """Return the first that points have a value of."""
    return next((c for c in choice if any(as_number(p.get(c.name)) is not None for p in points)), None)


def _note(panels: Mapping[str, Rows], heights: Sequence[Height]) -> str:
    several = any(len(records) > 1 for rows in panels.values() for _, records in rows)
    words = ["Thin: every seed. Bold: their median, as far as all of them go."] if several else []
    words += (
        ["What is steep at the beginning may lie above the axes."] if any(h.falls for h in heights) else []
    )
    return " ".join(words)


def curves_of(rows: Rows, height: Height, width: Width, data: Width) -> dict[str, Curves]:
    """Return the curves of each row that has any.

    Args:
        rows: labels and their runs.
        height: what the curves show.
        width: what they run over.
        data: the amount of data, at which the clocks of several runs are compared.
    """
    found: dict[str, Curves] = {}
    for label, records in rows:
        runs: list[tuple[list[tuple[float, float, float]], bool]] = []
        for record in records[:MOST_RUNS]:
            if points := _points(record, height, width, data):
                runs.append((points, status(record) != "ok"))
        good = [points for points, bad in runs if not bad]
        if width.name == data.name:
            bold = median_line([[(a, b) for _, a, b in points] for points in good], stairs=height.stairs)
        else:
            bold = median_over_time(good, stairs=height.stairs)
        if runs:
            found[label] = Curves([([(a, b) for _, a, b in points], bad) for points, bad in runs], bold)
    return found


def _points(record: Record, height: Height, width: Width, data: Width) -> list[tuple[float, float, float]]:
    """Return data, place and height of a run's points; stairs from their foot, for nothing was solved before."""
    found: list[tuple[float, float, float]] = []
    for point in points_of(record):
        seen, place, value = (as_number(point.get(name)) for name in (data.name, width.name, height.name))
        if seen is not None and place is not None and value is not None:
            found.append((seen, place, value))
    return [(0.0, 0.0, 0.0), *found] if height.stairs and found and min(found)[0] > 0 else found


def panel(
    title: str,
    curves: Mapping[str, Curves],
    height: Height,
    width: Width,
    salt: str,
    axis: Axis | None = None,
) -> Plot:
    """Return a plot of some rows.

    Args:
        title: stands over it.
        curves: of each row.
        height: what they show.
        width: what they run over.
        salt: tells this plot from the others of the page.
        axis: where the axes end; None for around the curves.
    """
    ends = axis or Axis.around(list(curves.values()), height)

    def paint(axes: Axes) -> Legend:
        heights = [b for c in curves.values() for points, _ in c.runs for _, b in points]
        size, words = width.scaled(ends.furthest)
        handles: list[Line2D] = []
        for drawn, style in zip(curves.values(), styles_of(list(curves)), strict=True):
            lines = Curves(capped(drawn.runs, heights), drawn.bold)
            handles.append(_draw_row(axes, lines, style, size, stairs=height.stairs))
        labels = [label + early_ends(drawn.runs) for label, drawn in curves.items()]
        axes.set(xlabel=words, ylabel=height.label)
        finish_axes(axes, height, ends, size)
        if any(bad for drawn in curves.values() for _, bad in drawn.runs):
            handles.append(Line2D([], [], color="#000000", linestyle="none", marker="x", markeredgewidth=2))
            labels.append("ended early")
        return handles, labels

    about = f"{title} over {width.label}: " + ", ".join(curves)
    return Plot(title, lambda: draw(paint, salt, about), 3 if height.beside else 1)


def finish_axes(axes: Axes, height: Height, ends: Axis, size: float) -> None:
    """Set the ends of the axes, and their numbers.

    Args:
        axes: with all curves drawn.
        height: what they show.
        ends: where the axes end.
        size: what places were divided by.
    """
    plain_axis(axes)
    axes.set_xlim(0, (ends.furthest if ends.furthest > 0 else 1.0) / size * 1.02)
    if height.stairs:
        axes.set_ylim(0, max(1.0, ends.high) * 1.06)
        axes.yaxis.set_major_locator(MaxNLocator(6, integer=True))
        return
    margin = 0.03 * (ends.high - ends.low)
    if margin > 0:
        axes.set_ylim(ends.low - margin, ends.high + margin)
    if height.falls and axes.get_ylim()[0] > 0:
        log_scale(axes)


def _draw_row(axes: Axes, curves: Curves, style: dict[str, Any], size: float, *, stairs: bool) -> Line2D:
    """Draw every run of a row thin and their median bold, with a cross where a run ended before its time."""
    how: dict[str, Any] = {"drawstyle": "steps-post"} if stairs else {}
    for points, bad in curves.runs:
        shown = thin(points, 300 if len(curves.runs) < 4 else 150)
        places = [a / size for a, _ in shown]
        axes.plot(places, [b for _, b in shown], color=style["color"], linewidth=0.8, alpha=0.5, **how)
        if bad:
            end = ([places[-1]], [shown[-1][1]])
            axes.plot(*end, marker="x", markersize=9, markeredgewidth=2.2, color=style["color"], zorder=5)
    places, heights = [a / size for a, _ in curves.bold], [b for _, b in curves.bold]
    mark = "." if len(places) < 12 and not stairs else None
    axes.plot(places, heights, linewidth=2.0, marker=mark, **style, **how)
    return Line2D([], [], linewidth=2.0, **style)
