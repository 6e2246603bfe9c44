"""The tables of ``bench plan``: predicted beside measured, and what the misses are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

from ..records import Record
from .plot import COLOURS, Group, Line, Plot
from .sheet import Column, Sheet, sheet_of
from .words import DASH, heading_of, text, unit

__all__ = ["plan_groups", "plan_sheet"]

#: Errors from which on a line is named under the table, in percent.
_MISS_PCT = 10.0

#: Of the lines of the benchmark's own records: headings of the groups, and the methods of each.
_GROUPS = {
    "data parallel": ("ddp",),
    "GPipe": ("gpipe",),
    "1F1B": ("1f1b",),
    "zero bubble": ("zero_bubble",),
    "stages, cDNI": ("stages", "stages_bfloat16"),
    "stages, cDNI, 25 % of messages": ("stages_sparse", "stages_sparse_bfloat16"),
    "stages, local loss": ("stages_local",),
}


def plan_sheet(what: str, records: Sequence[Record]) -> Sheet:
    """Return the lines of one part of the benchmark as text.

    Args:
        what: the part, such as ``records``.
        records: its lines, at least one.
    """
    if what == "records":
        return _records_sheet(records)
    columns: list[Column[Record]] = [Column("schedule", lambda r: text(r.method, 60), key=True)]
    cells = dict.fromkeys(name for r in records for name in r.cell if name != "what")
    columns += [_parameter(name) for name in cells]
    metrics = dict.fromkeys(name for r in records for name in r.metrics if not name.startswith("overhead_"))
    columns += [_measure(name) for name in metrics]
    return sheet_of(f"bench/plan of {what}", columns, records, is_bad=_is_bad)


def _is_bad(record: Record) -> bool:
    return record.status != "ok"


def _parameter(name: str) -> Column[Record]:
    def cell(record: Record) -> str:
        value = record.cell.get(name)
        return DASH if value is None else text(value, 40)

    return Column(name.replace("_", " "), cell, key=True)


def _measure(name: str) -> Column[Record]:
    def cell(record: Record) -> str:
        value = record.metrics.get(name)
        if isinstance(value, bool):
            return "yes" if value else "no"
        found = record.metrics.number(name)
        if value is None:
            return DASH
        return text(value, 40) if found is None else unit(name, found)

    late = name.endswith(("_p10", "_p90")) or name.startswith("idle") or name in ("mean_age",)
    return Column("each stage (ms)" if name == "stages_ms" else heading_of(name), cell, late=late)


# -- our own records ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Group:
    """Lines of one kind that are no part of the fit."""

    name: str
    records: Sequence[Record]

    @property
    def errors(self) -> list[float]:
        found = (r.metrics.number("error_pct") for r in self.records)
        return [abs(error) for error in found if error is not None]

    def pct(self, of: Callable[[list[float]], float]) -> str:
        return f"{of(self.errors):.1f} %" if self.errors else DASH

    def within(self, pct: float) -> str:
        return f"{sum(error <= pct for error in self.errors)} of {len(self.errors)}"


_COLUMNS: Sequence[Column[_Group]] = (
    Column("schedule", lambda g: g.name, key=True),
    Column("lines", lambda g: str(len(g.errors))),
    Column("error, median", lambda g: g.pct(median)),
    Column("error, worst", lambda g: g.pct(max)),
    Column("within 10 %", lambda g: g.within(10.0)),
    Column("within 20 %", lambda g: g.within(20.0)),
)


def _records_sheet(records: Sequence[Record]) -> Sheet:
    free = [r for r in records if r.metrics.get("is_fitted") is not True and r.status == "ok"]
    groups = [_Group(name, [r for r in free if r.method in methods]) for name, methods in _GROUPS.items()]
    groups = [group for group in groups if group.errors] + [_Group("all", free)]
    fitted = len(records) - len(free)
    return sheet_of(
        "bench/plan of records",
        _COLUMNS,
        groups,
        is_bad=lambda g: any(map(_is_bad, g.records)),
        notes=[
            *_machines(records),
            f"Left out of the errors: {fitted} lines, every tenth, from which the overheads were found.",
            *(f"Over {_MISS_PCT:.0f} %: {_said(r)}." for r in free if _error(r) > _MISS_PCT),
        ],
    )


def _machines(records: Sequence[Record]) -> list[str]:
    """Return where the lines were measured, which need not be where they were predicted."""
    names = dict.fromkeys(text(r.cell.get("machine"), 60) for r in records if r.cell.get("machine"))
    return [f"Measured on {', '.join(names)}."] if names else []


def _error(record: Record) -> float:
    return abs(record.metrics.number("error_pct") or 0.0)


def _said(record: Record) -> str:
    cell, metrics = record.cell, record.metrics
    count, variant = cell.get("microbatches"), cell.get("variant")
    words = [
        text(record.method, 30) + (f" ({text(variant, 20)})" if variant else ""),
        f"{count} microbatches" if count else "",
        f"batch {cell.get('batch_size')}",
        f"{cell.get('stages')} stages",
        _link(record),
    ]
    low, high = metrics.number("measured_ms_p10"), metrics.number("measured_ms_p90")
    spread = "" if low is None or high is None else f" [{low:.1f}, {high:.1f}]"
    measured, predicted = metrics.number("measured_ms"), metrics.number("predicted_ms")
    figures = f"measured {measured:.1f}{spread} ms, predicted {predicted:.1f} ms"
    return f"{', '.join(w for w in words if w)}: {figures} ({metrics.number('error_pct'):+.0f} %)"


def _link(record: Record) -> str:
    if not record.cell.get("emulated"):
        return "loopback"
    rate = record.cell.get("mbit_s")
    return f"{record.cell.get('rtt_ms'):g} ms" + ("" if rate is None else f", {rate:g} Mbit/s")


# -- plots --------------------------------------------------------------------------------------------------


def plan_groups(what: str, records: Sequence[Record]) -> list[Group]:
    """Return the plots of one part: what is lost over round trips, or predicted against measured.

    Args:
        what: the part, such as ``records``.
        records: its lines.
    """
    if what == "scale":
        plot = _lost(records)
        return [] if plot is None else [Group("Throughput lost to links", [plot])]
    plot = _against_measured(records)
    note = "On the dotted line a step takes as long as predicted; hollow points are those from which overheads were found."
    return (
        [] if plot is None else [Group("Predicted and measured", [plot], note if what == "records" else "")]
    )


def _lost(records: Sequence[Record]) -> Plot | None:
    """Return the throughput that is lost over the round trip, a line for each rate."""
    by_rate: dict[float, list[tuple[float, float, float, float]]] = {}
    for r in records:
        rate, rtt, lost = r.cell.number("mbit_s"), r.cell.number("rtt_ms"), r.metrics.number("lost_pct")
        if rate is not None and rtt is not None and lost is not None:
            by_rate.setdefault(rate, []).append((rtt, lost, 0.0, 0.0))
    if not by_rate:
        return None
    lines = [
        Line(_rate(rate), tuple(sorted(points)), k % len(COLOURS), 0, "osD^v"[k % 5])
        for k, (rate, points) in enumerate(sorted(by_rate.items()))
    ]
    places = sorted({p[0] for points in by_rate.values() for p in points})
    stages = max(r.cell.number("stages") or 0 for r in records)
    title = f"decoupled stages: {stages:g}"
    return Plot(title, "round trip (ms)", "throughput lost (%)", tuple(lines), ticks=tuple(places))


def _against_measured(records: Sequence[Record]) -> Plot | None:
    lines: list[Line] = []
    named = {m: name for name, methods in _GROUPS.items() for m in methods}
    kinds = dict.fromkeys(named.get(r.method, r.method) for r in records)
    for k, kind in enumerate(kinds):
        own = [r for r in records if named.get(r.method, r.method) == kind]
        for fitted in (False, True):
            points = [
                (measured, predicted, 0.0, 0.0)
                for r in own
                if (r.metrics.get("is_fitted") is True) == fitted
                and (measured := r.metrics.number("measured_ms")) is not None
                and (predicted := r.metrics.number("predicted_ms")) is not None
            ]
            if points:
                name = "" if fitted else text(kind, 40)
                marker = "osD^v"[k // len(COLOURS) % 5]
                lines.append(Line(name, tuple(points), k % len(COLOURS), None, marker, hollow=fitted))
    if not lines:
        return None
    labels = ("predicted and measured step", "measured step (ms)", "predicted step (ms)")
    return Plot(*labels, tuple(lines), guide="diagonal", log_y=True)


def _rate(mbit_s: float) -> str:
    return f"{mbit_s / 1000:g} Gbit/s" if mbit_s >= 1000 else f"{mbit_s:g} Mbit/s"
