"""``bench absence`` in the report: the error before, while and after a stage is dead, and its course."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from ..records import Record
from .plot import Group, Line, Plot, Point
from .sheet import Column, Sheet, sheet_of
from .words import DASH, text

__all__ = ["absence_groups", "absence_sheet"]

_ABSENT: Mapping[str, str] = {
    "none": "nobody dead",
    "lower": "the lowest dead",
    "middle": "one in the middle dead",
    "upper": "the highest dead",
}
_MOST_PLOTS = 12


@dataclass(frozen=True, slots=True)
class _Runs:
    """Runs that differ in their seeds alone."""

    absent: str
    rule: str
    inputs: str
    back: str
    records: Sequence[Record]

    def metric(self, name: str) -> float | None:
        """Return the median of a metric over seeds; None where no run has it."""
        found = [value for r in self.records if (value := r.metrics.number(name)) is not None]
        return median(found) if found else None

    def after(self) -> str:
        """Return the first error that was measured after the stage has come back."""
        found = [error for share, error, *_ in self.course() if share > 100 * (2 / 3) + 1e-6]
        return f"{found[0]:.2f} %" if found else DASH

    def course(self) -> tuple[Point, ...]:
        """Return the median error over seeds, by the share of the run."""
        errors: dict[float, list[float]] = {}
        for record in self.records:
            for point in record.curve:
                share, error = point.number("share_of_run"), point.number("test_error_pct")
                if share is not None and error is not None:
                    errors.setdefault(100 * share, []).append(error)
        return tuple((share, median(found), 0.0, 0.0) for share, found in sorted(errors.items()))


def _gathered(records: Iterable[Record]) -> list[_Runs]:
    found: dict[tuple[str, str, str, str], list[Record]] = {}
    for record in records:
        inputs = "synthetic inputs" if record.cell.get("synthetic_inputs") else "waits for inputs"
        key = (text(record.cell.get("rule"), 30), inputs, text(record.method, 30), _back(record))
        found.setdefault(key, []).append(record)
    return [_Runs(absent, rule, inputs, back, runs) for (rule, inputs, absent, back), runs in found.items()]


def _back(record: Record) -> str:
    """Return how a stage comes back, in words; nothing if it is as usual."""
    ignored = record.cell.number("settle_steps")
    return ", ".join(
        words
        for words in (
            "with fresh weights" if record.cell.get("begins") == "fresh" else "",
            f"its first {ignored:,.0f} answers ignored" if ignored else "",
        )
        if words
    )


def _percent(name: str, heading: str) -> Column[_Runs]:
    def cell(runs: _Runs) -> str:
        value = runs.metric(name)
        return DASH if value is None else f"{value:.2f} %"

    return Column(heading, cell)


def _steps(runs: _Runs) -> str:
    stages = max((int(r.cell.number("stages") or 0) for r in runs.records), default=0)
    found = [runs.metric(f"steps_stage{stage}") for stage in range(stages)]
    return (
        DASH
        if None in found or not found
        else ", ".join(f"{count:,.0f}" for count in found if count is not None)
    )


_COLUMNS: Sequence[Column[_Runs]] = (
    Column("rule", lambda r: r.rule, key=True),
    Column("without the stage below", lambda r: r.inputs, key=True),
    Column("stage that is dead", lambda r: _ABSENT.get(r.absent, r.absent), key=True),
    Column("it comes back", lambda r: r.back or DASH, key=True, optional=True),
    Column("seeds", lambda r: str(len(r.records))),
    _percent("error_before_pct", "error when it dies"),
    _percent("error_alone_pct", "when it comes back"),
    Column("soon after that", lambda r: r.after()),
    _percent("test_error_pct", "at the end"),
    Column("steps of each stage", _steps),
)


def absence_sheet(records: Sequence[Record]) -> Sheet:
    """Return a row for each rule, and for each stage that is dead: medians over seeds."""
    failures = [text(r.error, 300) for r in records if r.status != "ok"]
    found = _gathered(records)
    return sheet_of(
        "bench/absence",
        _COLUMNS,
        found,
        is_bad=lambda runs: any(r.status != "ok" for r in runs.records),
        failures=failures,
    )


def absence_groups(records: Sequence[Record]) -> list[Group]:
    """Return the course of the error: a panel for each rule, a line for each stage that is dead."""
    panels: dict[str, list[Line]] = {}
    for runs in _gathered(records):
        if points := runs.course():
            title = ", ".join(words for words in (runs.rule, runs.inputs, runs.back) if words)
            lines = panels.setdefault(title, [])
            lines.append(Line(_ABSENT.get(runs.absent, runs.absent), points, len(lines)))
    plots = [
        Plot(
            title,
            "share of the run (%)",
            "test error (%)",
            tuple(lines),
            log_y=None,
        )
        for title, lines in list(panels.items())[:_MOST_PLOTS]
    ]
    note = (
        "Lines are named by the stage that is dead from one third to two thirds of the run; median over seeds. Its weights of "
        "that time stand in the network that is tested."
    )
    return [Group("One stage is dead", plots, note)] if plots else []
