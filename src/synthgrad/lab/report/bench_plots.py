"""The plots of benchmarks: over depth, horizon or unroll, a panel for each width; measured against arithmetic."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from ..records import Record
from .absence import absence_groups
from .benches import bench_label, without_rivals
from .chaos import chaos_groups
from .plans import plan_groups
from .plot import COLOURS, Group, Line, Plot, Point, thin
from .words import key, text

__all__ = ["bench_plot", "bench_plot_groups"]

_MIB = 2.0**20
_MOST_PANELS, _MOST_LINES, _MOST_POINTS = 12, 32, 60


@dataclass(frozen=True, slots=True)
class _Measure:
    """What is drawn: title of the plot, label of the axis, metric, what to divide by, whether it has a spread."""

    title: str
    label: str
    name: str
    scale: float = 1.0
    bars: bool = False


def _ratio(title: str, to: str, name: str) -> _Measure:
    return _Measure(title, f"ratio to {to} (×)", name, bars=True)


_MEASURES: Mapping[str, Sequence[_Measure]] = {
    "step": (_ratio("ratio of a step to backprop", "backprop", "ratio_to_backprop"),),
    "memory": (
        _Measure("held for the backward pass", "held for backward (MiB)", "saved_bytes_peak", _MIB),
        _Measure("peak memory", "peak memory (MiB)", "peak_bytes", _MIB),
        _Measure("time of a step", "step (ms)", "step_ms_median"),
    ),
    "memory of unrolls": (
        _Measure("held for the backward pass", "held for backward (MiB)", "saved_bytes_peak", _MIB),
        _Measure("time of an unroll", "unroll (ms)", "unroll_ms_median"),
    ),
    "unroll": (_ratio("ratio of an unroll to a hand-written loop", "hand-written", "ratio_to_hand_written"),),
    "layer-parallel": (
        _Measure("time of a step", "step (ms)", "step_ms_median", bars=True),
        _ratio("ratio of a step to the best backprop", "best backprop", "ratio_to_best_backprop"),
        _Measure("ratio of a step to its limit", "ratio to limit (×)", "ratio_to_roofline"),
    ),
    "pipeline": (
        _Measure("throughput", "throughput (10³ examples/s)", "examples_per_s", 1e3),
        _ratio("ratio of a step to the best pipeline", "best pipeline", "ratio_to_best_pipeline"),
        _Measure("sent in a step by all processes", "sent (MiB)", "sent_bytes_per_step", _MIB),
    ),
    "gpt": (
        _Measure("ratio of a step to backprop", "ratio to backprop (×)", "ratio_step_to_backprop"),
        _Measure("held for the backward pass", "held for backward (MiB)", "saved_bytes_peak", _MIB),
        _Measure("peak memory", "peak memory (MiB)", "peak_bytes", _MIB),
    ),
}
#: What a panel has one value of, with the words for it.
_PANEL = {
    "width": "width {}",
    "batch_size": "batch {}",
    "threads": "threads {}",
    "unroll": "T {}",
    "stages": "{} stages",
    "layers": "{} layers",
    "mbit_s": "{} Mbit/s",
    "context": "{} tokens",
    "vocabulary": "vocabulary {}",
    "modules": "{} modules",
    "accumulate": "{} batches to an update",
}
#: What is drawn over: the first of these that a cell names, with the words for axis and title.
_OVER = {
    "rtt_ms": ("round trip (ms)", "round trip {:g} ms"),
    "horizon": ("horizon (steps)", "{:g} steps"),
    "unroll": ("T (steps)", "T {:g}"),
    "layers": ("layers", "{:g} layers"),
}

#: Benchmarks that have plots of their own.
_GROUPS: Mapping[str, Callable[[Sequence[Record]], list[Group]]] = {
    "absence": absence_groups,
    "chaos": chaos_groups,
}

#: A row of the table by its label, and whether it is compiled.
_Rows = dict[tuple[str, bool], list[Record]]


def bench_plot_groups(name: str, records: Sequence[Record]) -> list[Group]:
    """Return the plots of a benchmark; none if nothing is known of how to draw it.

    Args:
        name: of the benchmark, without ``bench/``.
        records: its lines.
    """
    if name.startswith("plan of "):
        return plan_groups(name.removeprefix("plan of "), records)
    if (groups := _GROUPS.get(name)) is not None:
        return groups(records)
    found: list[Group] = []
    records = without_rivals(name, records)
    over, panels = _panels(records)
    for measure in _MEASURES.get(name, ()):
        drawn = list(panels.items())[:_MOST_PANELS]
        plots = [plot for words, lines in drawn if (plot := _over(over, measure, words, lines))]
        note = "Bars reach from the 10 % to the 90 % point of the rounds." if measure.bars else ""
        note += (
            f" {len(panels) - _MOST_PANELS} more panels are not drawn." if len(panels) > _MOST_PANELS else ""
        )
        found += [Group(measure.title[0].upper() + measure.title[1:], plots, note.strip())] if plots else []
    if name == "step" and (plot := _against_arithmetic(records)):
        note = "On the dotted line a step takes as long as its matrix products say; rows that skip updates have no place here."
        found.append(Group("Measured against arithmetic", [plot], note))
    return found


def bench_plot(name: str, records: Sequence[Record], of: str = "") -> Plot | None:
    """Return one plot of a benchmark; None if there is no such metric, or more than one panel of it.

    Args:
        name: of the benchmark, without ``bench/``.
        records: its lines, which have one value of all but what is drawn over: one width, one batch size.
        of: the metric; empty for what comes first.
    """
    if name.startswith("plan of "):
        plots = [p for group in plan_groups(name.removeprefix("plan of "), records) for p in group.plots]
        return plots[0] if plots else None
    records = without_rivals(name, records)
    over, panels = _panels(records)
    measure = next((m for m in _MEASURES.get(name, ()) if of in ("", m.name)), None)
    if measure is None or len(panels) != 1:
        return None
    ((words, lines),) = panels.items()
    return _over(over, measure, words, lines)


def _panels(records: Sequence[Record]) -> tuple[str, dict[str, list[Record]]]:
    """Return what the lines are drawn over, and the lines by what a panel has one value of, in words."""
    cells = [r.cell for r in records]
    over = next((name for name in _OVER if any(cell.number(name) is not None for cell in cells)), "layers")
    varied = [
        k for k in _PANEL if k == "width" or (k != over and len({key(cell.get(k)) for cell in cells}) > 1)
    ]
    panels: dict[str, list[Record]] = {}
    for record, cell in zip(records, cells, strict=True):
        values = {k: "any" if cell.get(k) is None else text(cell[k], 12) for k in varied}
        panels.setdefault(", ".join(_PANEL[k].format(value) for k, value in values.items()), []).append(
            record
        )
    return over, panels


def _rows(records: Sequence[Record]) -> _Rows:
    """Group the lines by row label, apart for compiled and eager; without the rule where no two differ in it alone."""
    short = len({bench_label(r, with_rule=False) for r in records}) == len({bench_label(r) for r in records})
    rows: _Rows = {}
    for record in records:
        label = bench_label(record, with_rule=not short)
        rows.setdefault((label, record.cell.compiled is True), []).append(record)
    return dict(list(rows.items())[:_MOST_LINES])


def _over(over: str, measure: _Measure, words: str, records: Sequence[Record]) -> Plot | None:
    """Return a measure over what differs; where that is one place, a row of the plot for each row of the table."""
    rows = {row: _points(over, measure, lines) for row, lines in _rows(records).items()}
    rows = {row: points for row, points in rows.items() if points}
    if not rows:
        return None
    places = sorted({p[0] for points in rows.values() for p in points})
    single = len(places) == 1
    label, at = _OVER[over]
    title = words + (f", {at.format(places[0])}" if single else "")
    about = f"{measure.title}{'' if single else f' over {label}'}, {title}"
    lines = _lines(rows, named=single)
    plot = Plot(
        title, label, measure.label, lines, about, log_y=None, ticks=tuple(places[:: -(-len(places) // 10)])
    )
    return replace(plot, rows=single, guide="one" if measure.name.startswith("ratio") else "")


def _points(over: str, measure: _Measure, records: Sequence[Record]) -> list[Point]:
    points: list[Point] = []
    base = measure.name.removesuffix("_median")
    for record in records:
        place, value = record.cell.number(over), record.metrics.number(measure.name)
        if place is not None and value is not None:
            low, high = (record.metrics.number(f"{base}_p{p}") if measure.bars else None for p in (10, 90))
            down = max(0.0, value - low) if low is not None else 0.0
            up = max(0.0, high - value) if high is not None else 0.0
            points.append((place, value / measure.scale, down / measure.scale, up / measure.scale))
    return thin(sorted(points), _MOST_POINTS)


def _lines(
    rows: Mapping[tuple[str, bool], Sequence[Point]], *, named: bool = False, join: bool = True
) -> tuple[Line, ...]:
    """Return a line for each row, dashed and hollow where it is compiled.

    Args:
        rows: places and heights, by label and whether the row is compiled.
        named: does every row have a name of its own, in place of a legend?
        join: are the points joined?
    """
    names = list(dict.fromkeys(label for label, _ in rows))
    lines: list[Line] = []
    for (label, compiled), points in rows.items():
        k = names.index(label)
        # Several values at one place, of seeds or forms: a line through them would say nothing.
        joined = join and len({p[0] for p in points}) == len(points)
        style = Line("", (), k % len(COLOURS), int(compiled), "osD^v"[k // len(COLOURS) % 5], hollow=compiled)
        name = f"{label}, compiled" if compiled else label
        lines.append(
            replace(
                style, name=name if named else "", points=tuple(points), dash=style.dash if joined else None
            )
        )
        lines += [] if named else [replace(style, name=label, dash=0, hollow=False)]
    if any(compiled for _, compiled in rows) and not named:
        lines += [Line("eager", (), 6, 0, "o"), Line("compiled", (), 6, 1, "o", hollow=True)]
    return tuple(lines)


def _against_arithmetic(records: Sequence[Record]) -> Plot | None:
    rows: dict[tuple[str, bool], list[Point]] = {}
    for row, lines in _rows(records).items():
        for r in lines:
            x, y = r.metrics.ratio_arithmetic, r.metrics.ratio_to_backprop
            if x is not None and y is not None and r.cell.update_prob in (None, 1):
                rows.setdefault(row, []).append((x, y, 0.0, 0.0))
    if not rows:
        return None
    about = "measured ratio of a step to backprop against the ratio of its arithmetic"
    labels = ("measured and arithmetic ratio", "arithmetic ratio (×)", "measured ratio (×)")
    return Plot(*labels, _lines(rows, join=False), about, rank=1, guide="diagonal")
