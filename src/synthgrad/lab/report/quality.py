"""How good the credit at each interface was: its cosine with the true message, and its relative error."""

from __future__ import annotations

import re
from collections.abc import Sequence
from statistics import mean

from matplotlib.axes import Axes

from ..records import Record
from .curves import MOST_RUNS, drawn_rows, points_of
from .fields import number, part, text
from .plots import Group, Plot
from .plotted import DATA
from .summary import Table
from .svg import COLOURS, Legend, draw, line_style, log_scale, plain_axis, thin
from .unrolls import UnrollSweep

__all__ = ["quality_group", "unroll_quality"]

_MEASURES = (
    ("cosine", "cosine with the true message"),
    ("relative_error", "relative error"),
)
_NOTE = (
    "The credit that a module learns from, held against the true message when that comes: a cosine of 1 is its "
    "direction, a relative error of 1 is no better than no credit at all. Means over seeds."
)

#: Values over steps, for each interface.
Lines = dict[str, list[tuple[float, float]]]


def quality_group(table: Table, salt: str) -> Group | None:
    """Return two plots for each method whose interfaces were measured; None if there is none.

    Args:
        table: the runs.
        salt: tells this table's plots from those of the others on the page.
    """
    plots: list[Plot] = []
    for k, (label, records) in enumerate(drawn_rows(table)):
        for rank, (measure, title) in enumerate(_MEASURES):
            lines = _means(records[:MOST_RUNS], measure)
            if lines:
                name = f"{label}: {title.partition(' ')[0] if rank == 0 else title}"
                names = {n if table.recurrent else f"after {text(n, 30)}": line for n, line in lines.items()}
                plots.append(_plot(name, title, names, f"{salt}-quality-{k}-{measure}", 4 + rank))
    return Group("Quality of each interface", plots, _NOTE) if plots else None


def unroll_quality(sweep: UnrollSweep, salt: str) -> Group | None:
    """Return two plots for each method with a synthetic gradient at the end of unrolls, a line for each length.

    Args:
        sweep: the runs.
        salt: tells these plots from the others of the page.
    """
    data = next(width for width in DATA if width.name == sweep.kind.data)
    plots: list[Plot] = []
    for k, row in enumerate(sweep.rows[: len(COLOURS)]):
        for rank, (measure, title) in enumerate(_MEASURES):
            lines: Lines = {}
            for unroll in sweep.unrolls:
                found = _means(sweep.runs(row, unroll)[:MOST_RUNS], measure, sweep.kind.data)
                several = len(found) > 1
                lines |= {f"T={unroll:g}" + (f", {n}" if several else ""): line for n, line in found.items()}
            if lines:
                name = f"{row}: {title.partition(' ')[0] if rank == 0 else title}"
                size, words = data.scaled(max(a for line in lines.values() for a, _ in line))
                few = {n: [(a / size, b) for a, b in lines[n]] for n in _few(list(lines))}
                plots.append(_plot(name, title, few, f"{salt}-quality-{k}-{measure}", 5 + rank, words))
    return Group("Quality at the end of unrolls", plots, _NOTE) if plots else None


def _few(names: list[str]) -> list[str]:
    """Return as many of the names as there are colours, from the first to the last."""
    if len(names) <= len(COLOURS):
        return names
    return [names[round(k * (len(names) - 1) / (len(COLOURS) - 1))] for k in range(len(COLOURS))]


def _means(records: Sequence[Record], measure: str, x: str = "step") -> Lines:
    """Return the mean over runs of a measure at each interface, by step or what else is named."""
    found: dict[str, dict[float, list[float]]] = {}
    for record in records:
        for point in points_of(record):
            step = number(point, x)
            for name in part(point, "quality") if step is not None else ():
                value = number(part(part(point, "quality"), name), measure)
                if value is not None and step is not None:
                    found.setdefault(name, {}).setdefault(step, []).append(value)
    # Modules that skip updates are measured when they do not: not in the order of the forward pass.
    # Of many interfaces some are shown.
    names = _few(sorted(found, key=_natural))
    return {name: [(step, mean(values)) for step, values in sorted(found[name].items())] for name in names}


def _natural(name: str) -> list[tuple[int, str]]:
    """Return what to sort by so that layer10 comes after layer9."""
    return [(int(word), "") if word.isdecimal() else (-1, word) for word in re.split(r"(\d{1,9})", name)]


def _plot(name: str, y_label: str, lines: Lines, salt: str, rank: int, x_label: str = "step") -> Plot:
    def paint(axes: Axes) -> Legend:
        for k, points in enumerate(lines.values()):
            shown = thin(points)
            axes.plot(
                [a for a, _ in shown],
                [b for _, b in shown],
                linewidth=1.6,
                marker="." if len(shown) < 12 else None,
                **line_style(k),
            )
        axes.set(xlabel=x_label, ylabel=y_label)
        plain_axis(axes)
        heights = [b for points in lines.values() for _, b in points]
        if y_label.startswith("cosine"):
            axes.set_ylim(min(0.0, *heights) - 0.05, 1.05)
        elif min(heights) > 0 and max(heights) > 20 * min(heights):
            log_scale(axes)
        else:
            axes.set_ylim(bottom=0)
        return axes.get_lines(), [text(line, 36) for line in lines]

    about = f"{name} over {x_label}: " + ", ".join(text(n, 36) for n in lines)
    return Plot(name, lambda: draw(paint, salt, about), rank)
