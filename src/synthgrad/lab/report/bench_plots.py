"""The plots of benchmarks: over depth, horizon or unroll, a panel for each width; measured against arithmetic."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from ..records import Record
from .bench import bench_label
from .bench_pipeline import without_rivals
from .fields import key, number, part, text
from .plots import Group, Plot
from .svg import COLOURS, Legend, depth_axis, draw, log_scale, thin

__all__ = ["bench_picture", "bench_plots"]

_MIB = 2.0**20
_MOST_PANELS = 12  # of a measure
_MOST_POINTS = 60  # of a line
_MOST_LINES = 32  # of a panel


@dataclass(frozen=True, slots=True)
class _Measure:
    """What is drawn over depth, or over the steps of recurrent networks.

    Attributes:
        title: stands over the plot.
        label: of the axis, with the unit.
        name: of the metric.
        low, high: metrics of the ends of its error bar; empty for none.
        scale: what to divide by.
    """

    title: str
    label: str
    name: str
    low: str = ""
    high: str = ""
    scale: float = 1.0


_MEASURES: dict[str, tuple[_Measure, ...]] = {
    "step": (
        _Measure(
            "ratio of a step to backprop",
            "ratio to backprop (×)",
            "ratio_to_backprop",
            "ratio_to_backprop_p10",
            "ratio_to_backprop_p90",
        ),
    ),
    "memory": (
        _Measure("held for the backward pass", "held for backward (MiB)", "saved_bytes_peak", scale=_MIB),
        _Measure("peak memory", "peak memory (MiB)", "peak_bytes", scale=_MIB),
        _Measure("time of a step", "step (ms)", "step_ms_median"),
    ),
    "unroll": (
        _Measure(
            "ratio of an unroll to a hand-written loop",
            "ratio to hand-written (×)",
            "ratio_to_hand_written",
            "ratio_to_hand_written_p10",
            "ratio_to_hand_written_p90",
        ),
    ),
    "layer-parallel": (
        _Measure("time of a step", "step (ms)", "step_ms_median", "step_ms_p10", "step_ms_p90"),
        _Measure(
            "ratio of a step to the best backprop",
            "ratio to best backprop (×)",
            "ratio_to_best_backprop",
            "ratio_to_best_backprop_p10",
            "ratio_to_best_backprop_p90",
        ),
        _Measure("ratio of a step to its limit", "ratio to limit (×)", "ratio_to_roofline"),
    ),
    "pipeline": (
        _Measure("throughput", "throughput (10³ examples/s)", "examples_per_s", scale=1e3),
        _Measure(
            "ratio of a step to the best pipeline",
            "ratio to best pipeline (×)",
            "ratio_to_best_pipeline",
            "ratio_to_best_pipeline_p10",
            "ratio_to_best_pipeline_p90",
        ),
        _Measure("sent in a step by all processes", "sent (MiB)", "sent_bytes_per_step", scale=_MIB),
    ),
}
_LSTM_MEMORY = (
    _MEASURES["memory"][0],
    _Measure("time of an unroll", "unroll (ms)", "unroll_ms_median"),
)
#: What a panel has one value of, with the words for it.
_PANEL = {
    "width": "width {}",
    "batch_size": "batch {}",
    "threads": "threads {}",
    "unroll": "T {}",
    "stages": "{} stages",
    "layers": "{} layers",
    "mbit_s": "{} Mbit/s",
}
#: What is drawn over: the first of these that a cell names, with the words for axis and title.
_OVER = {
    "rtt_ms": ("round trip (ms)", "round trip {} ms"),
    "horizon": ("horizon (steps)", "{} steps"),
    "unroll": ("T (steps)", "T {}"),
    "layers": ("layers", "{} layers"),
}

#: Place on the axis, value, and how far the error bar reaches down and up.
Points = list[tuple[float, float, float, float]]


def bench_plots(name: str, records: Sequence[Record]) -> list[Group]:
    """Return the plots of a benchmark; none if nothing is known of how to draw it.

    Args:
        name: of the benchmark, without ``bench/``.
        records: its lines.
    """
    groups: list[Group] = []
    records = without_rivals(name, records)
    over = _over(records)
    panels = _panels(records, over)
    measures = _measures(name, over)
    more = f" {len(panels) - _MOST_PANELS} more panels are not drawn." if len(panels) > _MOST_PANELS else ""
    for k, measure in enumerate(measures):
        plots = [
            plot
            for n, (words, lines) in enumerate(list(panels.items())[:_MOST_PANELS])
            if (plot := _drawn_over(over, measure, words, lines, f"bench-{name}-{k}-{n}"))
        ]
        note = "Bars reach from the 10 % to the 90 % point of the rounds." if measure.low else ""
        if plots:
            groups.append(Group(measure.title[0].upper() + measure.title[1:], plots, (note + more).strip()))
    if name == "step" and (plot := _against_arithmetic(records)):
        note = "On the dotted line a step takes as long as its matrix products say; rows that skip updates have no place here."
        groups.append(Group("Measured against arithmetic", [plot], note))
    return groups


def bench_picture(name: str, records: Sequence[Record], of: str = "") -> str:
    """Return one plot of a benchmark as SVG text, to be made `standalone`.

    Args:
        name: of the benchmark, without ``bench/``.
        records: its lines, which have one value of all but what is drawn over: one width, one batch size.
        of: the metric; empty for what comes first.

    Returns:
        The plot; empty if there is no such metric, or more than one panel of it.
    """
    records = without_rivals(name, records)
    over = _over(records)
    panels = _panels(records, over)
    measure = next((m for m in _measures(name, over) if of in ("", m.name)), None)
    if measure is None or len(panels) != 1:
        return ""
    ((words, lines),) = panels.items()
    plot = _drawn_over(over, measure, words, lines, f"bench-{name}")
    return plot.draw() if plot else ""


def _measures(name: str, over: str) -> tuple[_Measure, ...]:
    return _LSTM_MEMORY if (name, over) == ("memory", "horizon") else _MEASURES.get(name, ())


def _over(records: Sequence[Record]) -> str:
    """Return what the lines are drawn over."""
    cells = [part(r, "cell") for r in records]
    return next((name for name in _OVER if any(number(cell, name) is not None for cell in cells)), "layers")


def _panels(records: Sequence[Record], over: str) -> dict[str, list[Record]]:
    """Group the lines by what a panel has one value of; its words name what differs between panels."""
    cells = [part(r, "cell") for r in records]
    varied = [k for k in _PANEL if k == "width" or (k != over and len({key(c.get(k)) for c in cells}) > 1)]
    panels: dict[str, list[Record]] = {}
    for record, cell in zip(records, cells, strict=True):
        words = ", ".join(
            _PANEL[k].format("any" if cell.get(k) is None else text(cell[k], 12)) for k in varied
        )
        panels.setdefault(words, []).append(record)
    return panels


def _rows(records: Sequence[Record]) -> dict[tuple[str, bool], list[Record]]:
    """Group the lines by row label, apart for compiled and eager; without the rule where no two differ in it alone."""
    short = len({bench_label(r, with_rule=False) for r in records}) == len({bench_label(r) for r in records})
    rows: dict[tuple[str, bool], list[Record]] = {}
    for record in records:
        compiled = part(record, "cell").get("compiled") is True
        rows.setdefault((bench_label(record, with_rule=not short), compiled), []).append(record)
    return rows


def _points(over: str, measure: _Measure, records: Sequence[Record]) -> Points:
    points: Points = []
    for record in records:
        metrics = part(record, "metrics")
        depth, value = number(part(record, "cell"), over), number(metrics, measure.name)
        if depth is not None and value is not None:
            low, high = number(metrics, measure.low), number(metrics, measure.high)
            down = 0.0 if low is None else max(0.0, value - low)
            up = 0.0 if high is None else max(0.0, high - value)
            points.append((depth, value / measure.scale, down / measure.scale, up / measure.scale))
    points.sort()
    # Of many points some are drawn, the first and the last among them.
    most = min(len(points), _MOST_POINTS)
    return [points[round(k * (len(points) - 1) / max(1, most - 1))] for k in range(most)]


def _drawn_over(
    over: str, measure: _Measure, words: str, records: Sequence[Record], salt: str
) -> Plot | None:
    lines = {
        label: points for label, rows in _rows(records).items() if (points := _points(over, measure, rows))
    }
    lines = dict(list(lines.items())[:_MOST_LINES])
    if not lines:
        return None
    depths = sorted({p[0] for points in lines.values() for p in points})
    paint = (
        _dots(measure, lines) if len(depths) == 1 else _depths(over, measure, lines, depths)
    )  # over one place there is no line to draw
    title = words + (", " + _OVER[over][1].format(f"{depths[0]:g}") if len(depths) == 1 else "")
    height = 0.9 + 0.3 * len(lines) if len(depths) == 1 else 3.2
    along = "" if len(depths) == 1 else f" over {_OVER[over][0]}"
    return Plot(title, lambda: draw(paint, salt, f"{measure.title}{along}, {title}", height), 0)


def _styles(lines: dict[tuple[str, bool], Points]) -> dict[tuple[str, bool], dict[str, Any]]:
    names = list(dict.fromkeys(label for label, _ in lines))
    return {
        (label, compiled): {
            "color": COLOURS[names.index(label) % len(COLOURS)],
            "marker": "osD^v"[names.index(label) // len(COLOURS) % 5],
            "linestyle": "--" if compiled else "-",
            "markerfacecolor": "none" if compiled else None,
        }
        for label, compiled in lines
    }


def _legend(styles: dict[tuple[str, bool], dict[str, Any]]) -> Legend:
    """Name each row once, by its colour, and, where some are compiled, what is dashed."""
    first: dict[str, dict[str, Any]] = {}
    for (label, _), style in styles.items():
        first.setdefault(label, style | {"linestyle": "-", "markerfacecolor": None})
    if any(compiled for _, compiled in styles):
        grey = {"color": "#7f7f7f", "marker": "o"}
        first["eager"] = grey | {"linestyle": "-"}
        first["compiled"] = grey | {"linestyle": "--", "markerfacecolor": "none"}
    handles = [Line2D([], [], linewidth=1.5, markersize=4.5, **style) for style in first.values()]
    return handles, list(first)


def _name(label: str, compiled: bool) -> str:
    return f"{label}, compiled" if compiled else label


def _depths(
    over: str, measure: _Measure, lines: dict[tuple[str, bool], Points], depths: Sequence[float]
) -> Callable[[Axes], Legend]:
    def paint(axes: Axes) -> Legend:
        styles = _styles(lines)
        for label, style in styles.items():
            points = lines[label]
            # Several values at one depth, of seeds or forms: a line through them would say nothing.
            several = len({p[0] for p in points}) < len(points)
            drawn: dict[str, Any] = style | ({"linestyle": "none"} if several else {})
            axes.errorbar(
                [p[0] for p in points],
                [p[1] for p in points],
                yerr=([p[2] for p in points], [p[3] for p in points]) if measure.low else None,
                linewidth=1.5,
                markersize=4.5,
                capsize=2.5,
                elinewidth=1,
                **drawn,
            )
        depth_axis(axes, depths[:: -(-len(depths) // 10)], _OVER[over][0])
        axes.set_ylabel(measure.label)
        heights = [p[1] for points in lines.values() for p in points]
        if min(heights) > 0 and max(heights) > 12 * min(heights):
            log_scale(axes)
        else:
            axes.set_ylim(bottom=0)
        if measure.name.startswith("ratio"):
            axes.axhline(1, color="#7f7f7f", linewidth=1, linestyle=":")
        return _legend(styles)

    return paint


def _dots(measure: _Measure, lines: dict[tuple[str, bool], Points]) -> Callable[[Axes], Legend]:
    """One depth only: a row of the plot for each row of the table, named at its side."""

    def paint(axes: Axes) -> Legend:
        shown = list(_styles(lines).items())
        for k, (label, style) in enumerate(shown):
            for _, value, down, up in lines[label]:
                # What a column has no room for is said above the mark.
                axes.errorbar(
                    [value],
                    [k],
                    xerr=([down], [up]) if measure.low else None,
                    markersize=6,
                    capsize=3,
                    **style,
                )
            axes.annotate(
                _name(*label), (0, k), (6, 4), xycoords=("axes fraction", "data"), textcoords="offset points",
                fontsize=9, va="bottom",
            )  # fmt: skip
        axes.set_ylim(len(shown) - 0.4, -0.9)
        axes.set_yticks([])
        axes.set_xlim(left=0)
        axes.set_xlabel(measure.label)
        if measure.name.startswith("ratio"):
            axes.axvline(1, color="#7f7f7f", linewidth=1, linestyle=":")
        return [], []

    return paint


def _against_arithmetic(records: Sequence[Record]) -> Plot | None:
    points: dict[tuple[str, bool], list[tuple[float, float]]] = {}
    for label, rows in _rows(records).items():
        for record in rows:
            metrics = part(record, "metrics")
            x, y = number(metrics, "ratio_arithmetic"), number(metrics, "ratio_to_backprop")
            whole = number(part(record, "cell"), "update_prob") in (None, 1)
            if x is not None and y is not None and whole:
                points.setdefault(label, []).append((x, y))
    points = {label: thin(pairs) for label, pairs in list(points.items())[:_MOST_LINES]}
    if not points:
        return None

    def paint(axes: Axes) -> Legend:
        styles = _styles({label: [] for label in points})
        right, top = (1.08 * max(pair[k] for pairs in points.values() for pair in pairs) for k in (0, 1))
        axes.plot([0, right], [0, right], color="#7f7f7f", linewidth=1, linestyle=":")
        for label, pairs in points.items():
            style: dict[str, Any] = styles[label] | {"linestyle": "none", "markersize": 5.5}
            axes.plot([a for a, _ in pairs], [b for _, b in pairs], **style)
        axes.set(xlim=(0, right), ylim=(0, top), xlabel="arithmetic ratio (×)", ylabel="measured ratio (×)")
        return _legend(styles)

    about = "measured ratio of a step to backprop against the ratio of its arithmetic"
    return Plot("measured and arithmetic ratio", lambda: draw(paint, "bench-arithmetic", about), 1)
