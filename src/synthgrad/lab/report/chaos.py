"""``bench chaos`` in the report: a row for each run, and the pace of every stage over time, with the faults."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ..records import Record
from .plot import COLOURS, Group, Line, Plot, Point
from .sheet import Column, Sheet, sheet_of
from .words import DASH, text

__all__ = ["chaos_groups", "chaos_sheet"]

#: What happened, in the words of the legend, with a marker.
_MARKERS = {"killed": "x", "frozen": "s", "cut": "D"}
_MOST_PLOTS = 12


def _number(record: Record, name: str) -> str:
    value = record.metrics.number(name)
    return DASH if value is None else f"{value:,.0f}"


def _ratio(record: Record, name: str) -> str:
    value = record.metrics.number(name)
    return DASH if value is None else f"{value:.3f} ×"


def _seconds(record: Record, name: str) -> str:
    value = record.metrics.number(name)
    return DASH if value is None else f"{value:.1f} s"


def _percent(record: Record, name: str) -> str:
    value = record.metrics.number(name)
    return DASH if value is None else f"{value:.2f} %"


def _bits(record: Record, name: str) -> str:
    value = record.metrics.number(name)
    return DASH if value is None else f"{value:.3f}"


def _network(record: Record) -> str:
    return text(record.cell.get("arch", "fcn"), 10)


def _faults(record: Record) -> str:
    found = [record.metrics.number(f"num_{kind}") for kind in _MARKERS]
    return DASH if None in found else " + ".join(f"{count:.0f}" for count in found if count is not None)


_COLUMNS: Sequence[Column[Record]] = (
    Column("run", lambda r: text(r.method, 30).replace("_", " "), key=True),
    Column("network", _network, key=True),
    Column("stages", lambda r: text(r.cell.get("stages"), 10), key=True),
    Column("rule", lambda r: text(r.cell.get("rule"), 30), key=True),
    Column("seed", lambda r: text(r.seed, 10), key=True),
    Column("killed + frozen + cut", _faults),
    Column("survivors' pace, median", lambda r: _ratio(r, "survivors_pace_ratio_median")),
    Column("lowest", lambda r: _ratio(r, "survivors_pace_ratio_min")),
    Column("back after, median", lambda r: _seconds(r, "return_s_median")),
    Column("longest", lambda r: _seconds(r, "return_s_max")),
    Column("steps of the last stage", lambda r: _number(r, "steps_last")),
    Column("of those without faults", lambda r: _ratio(r, "kept_ratio")),
    Column("test error", lambda r: _percent(r, "test_error_pct"), optional=True),
    Column("validation, bits per character", lambda r: _bits(r, "val_bits_per_char"), optional=True),
)


def chaos_sheet(records: Sequence[Record]) -> Sheet:
    """Return the runs with and without faults."""
    failures = [text(r.error, 300) for r in records if r.status != "ok"]
    return sheet_of("bench/chaos", _COLUMNS, records, is_bad=lambda r: r.status != "ok", failures=failures)


@dataclass(frozen=True, slots=True)
class _Drawn:
    """A run that has a timeline."""

    record: Record
    stages: int

    def lines(self) -> Iterator[Line]:
        """Yield a line for the pace of each stage, and points for what happened."""
        for stage in range(self.stages):
            name = f"steps_per_s_stage{stage}"
            points: list[Point] = [
                (at, pace, 0.0, 0.0)
                for point in self.record.curve
                if (at := point.number("elapsed_s")) is not None and (pace := point.number(name)) is not None
            ]
            yield Line(f"stage {stage}", tuple(points), stage % len(COLOURS), stairs=True)
        for k, kind in enumerate(_MARKERS):
            at = [(fault["begin_s"], 0.0, 0.0, 0.0) for fault in self._faults() if fault["kind"] == kind]
            if at:
                marker, colour = _MARKERS[kind], (self.stages + k) % len(COLOURS)
                yield Line(kind, tuple(at), colour, dash=None, marker=marker)

    def _faults(self) -> list[dict[str, Any]]:
        found = self.record.config.get("faults")
        if not isinstance(found, Sequence) or isinstance(found, str):
            return []
        return [f for f in found if isinstance(f, dict) and isinstance(f.get("begin_s"), int | float)]


def chaos_groups(records: Sequence[Record]) -> list[Group]:
    """Return the timelines of the runs with faults."""
    drawn = [
        _Drawn(r, int(stages))
        for r in records
        if r.curve and (stages := r.cell.number("stages")) is not None and r.config.get("faults")
    ]
    plots = [
        Plot(
            f"{text(one.record.method, 30).replace('_', ' ')}, {text(one.record.cell.get('rule'), 30)}, "
            f"seed {text(one.record.seed, 10)}",
            "time (s)",
            "steps per second",
            tuple(one.lines()),
        )
        for one in drawn[:_MOST_PLOTS]
    ]
    note = "A mark at the bottom is a fault: a stage is killed or frozen, or a link is cut."
    return [Group("Stages under faults", plots, note)] if plots else []
