"""Plots of a table's runs, as SVG text to stand inside a page."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib

matplotlib.use("Agg")

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..records import Record
from .summary import ORDER, Table, row_label

__all__ = ["curves", "quality_plots"]

# Colours that colour-blind readers can tell apart (Okabe and Ito; grey for their yellow), each with a line style of its own.
_COLOURS = ("#0072B2", "#E69F00", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#7F7F7F", "#000000")
_STYLES = ("-", "--", "-.", ":")
_MOST = len(_COLOURS)  # rows in one plot: as many as there are colours


def _styles(labels: Sequence[str]) -> list[dict[str, Any]]:
    """Return a style for each row: a method's own, the same in every plot, where it has one row only."""
    methods = [label.partition(" ")[0] for label in labels]
    own = len(set(methods)) == len(methods) and all(m in ORDER for m in methods)
    numbers = [ORDER.index(m) for m in methods] if own else range(len(labels))
    return [
        {"color": _COLOURS[k % len(_COLOURS)], "linestyle": _STYLES[k % len(_STYLES)], "linewidth": 1.8}
        for k in numbers
    ]


def _svg(draw: Callable[[Axes], None], labels: Sequence[str]) -> str:
    """Draw on a pair of axes and return them as SVG, with text as text and no fixed size."""
    columns = 4 if max(map(len, labels)) < 16 else 2
    rows = -(-len(labels) // columns)
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "synthgrad", "font.size": 10}):
        figure = Figure(figsize=(5.2, 3.2 + 0.2 * rows), layout="constrained")
        axes = figure.subplots()
        axes.grid(True, alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        draw(axes)
        # Above the axes, where no curve can run through it.
        handles, _ = axes.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper left", ncols=columns, frameon=False, fontsize=9)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    # Black becomes the page's text colour, so that the plot can be read in the dark as well.
    text = re.sub(r"(fill|stroke): #000000", r"\1: currentColor", text)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    return re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)


def _runs(table: Table) -> list[tuple[str, list[Record]]]:
    """Return the rows to draw, with the runs of each: those with the least error, if there are many."""
    groups: dict[str, list[Record]] = {}
    for record in table.records:
        if record.get("curve"):
            groups.setdefault(row_label(record), []).append(record)
    rows = [row for row in table.rows if row.method in groups]
    if len(rows) > _MOST:
        best = sorted(rows, key=lambda row: math.inf if row.error_pct is None else row.error_pct)[:_MOST]
        rows = [row for row in rows if row in best]
    return [(row.method, groups[row.method]) for row in rows]


def curves(table: Table) -> list[tuple[str, str]]:
    """Return titled plots: error over steps and over seconds, losses over steps."""
    error, part = f"{table.part}_error_pct", "validation" if table.part == "val" else "test"
    plots = [
        (f"{part} error over steps", _curve(table, "step", error, "step", f"{part} error (%)", log=True)),
        (
            f"{part} error over time",
            _curve(table, "elapsed_s", error, "training time (s)", f"{part} error (%)", log=True),
        ),
        ("training loss", _curve(table, "step", "train_loss", "step", "training loss (nats)", log=True)),
        (
            f"{part} loss",
            _curve(table, "step", f"{table.part}_loss", "step", f"{part} loss (nats)", log=True),
        ),
    ]
    timed = any(row.step_ms is not None for row in table.rows)
    many = f", best {_MOST} of {len(table.rows)}" if len(table.rows) > _MOST else ""
    return [(title + many, svg) for title, svg in plots if svg and (timed or "over time" not in title)]


def _curve(table: Table, x: str, y: str, x_label: str, y_label: str, *, log: bool) -> str:
    runs = [(method, [_points(r, x, y) for r in records]) for method, records in _runs(table)]
    heights = [height for _, lines in runs for line in lines for _, height in line]
    if not heights:
        return ""
    styles = _styles([method for method, _ in runs])
    log = log and max(heights) > 0  # an error of zero has no place on a logarithmic axis

    def draw(axes: Axes) -> None:
        for (method, lines), style in zip(runs, styles, strict=True):
            for k, line in enumerate(lines):
                points = [(a, b) for a, b in line if b > 0 or not log]
                axes.plot(
                    [a for a, _ in points],
                    [b for _, b in points],
                    label=method if k == 0 else None,
                    alpha=0.9 if len(lines) == 1 else 0.6,
                    marker="." if len(points) < 12 else None,
                    **style,
                )
        axes.set(xlabel=x_label, ylabel=y_label)
        axes.set_xlim(left=0)
        if log:
            _plain_log(axes)

    return _svg(draw, [method for method, _ in runs])


def _points(record: Record, x: str, y: str) -> list[tuple[float, float]]:
    """Return the points of a curve that have both values, as finite numbers."""
    pairs = [(p.get(x), p.get(y)) for p in record["curve"]]
    return [(a, b) for a, b in pairs if _is_number(a) and _is_number(b)]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _plain_log(axes: Axes) -> None:
    """A logarithmic axis with plain numbers: 2, 5, 10, not 10 to some power."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def quality_plots(table: Table) -> list[tuple[str, str]]:
    """Return a plot for each method with measured interfaces: cosine of credit and true message."""
    plots: list[tuple[str, str]] = []
    for method, records in _runs(table):
        points = [p for p in records[0]["curve"] if p.get("quality")]
        if points:
            plots.append((f"{method}: quality of the credit", _quality(points)))
    return plots


def _quality(points: Sequence[dict[str, Any]]) -> str:
    names = list(points[0]["quality"])

    def draw(axes: Axes) -> None:
        for k, name in enumerate(names):
            pairs = [(p["step"], p["quality"][name]["cosine"]) for p in points if name in p["quality"]]
            axes.plot(
                [s for s, _ in pairs],
                [c for _, c in pairs],
                label=f"after {name}",
                color=_COLOURS[k % len(_COLOURS)],
                linestyle=_STYLES[k % len(_STYLES)],
            )
        axes.set(xlabel="step", ylabel="cosine with the message", ylim=(None, 1.05))
        axes.set_xlim(left=0)

    return _svg(draw, [f"after {name}" for name in names])
