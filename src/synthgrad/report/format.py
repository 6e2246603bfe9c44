"""The text of a table's cells, the same on the terminal, in the page and in the documents."""

from __future__ import annotations

from collections.abc import Iterable

from ..records import Record
from .summary import Row, Table

#: Columns of a table of step times.
BENCH_HEADINGS = (
    "method",
    "layers × width",
    "batch",
    "threads",
    "step",
    "ratio to backprop",
    "10–90 %",
    "arithmetic",
)

__all__ = ["BENCH_HEADINGS", "bench_cells", "bench_markdown", "cells", "headings", "markdown"]


def headings(table: Table) -> tuple[str, ...]:
    """Return the column titles."""
    part = "validation" if table.part == "val" else "test"
    target = "target" if table.target_error_pct is None else f"{table.target_error_pct:g} % error"
    return (
        "method",
        f"{part} error",
        "step",
        "ratio to backprop",
        f"time to {target}",
        "cause of speed-up",
        "runs",
    )


def cells(row: Row) -> tuple[str, ...]:
    """Return the texts of a row; a dash where there is nothing to say."""
    spread = "" if row.spread_pct is None else f" ± {row.spread_pct:.2f}"
    runs = str(row.num_ok) + (f", {row.num_bad} not ok" if row.num_bad else "")
    time = "—" if row.time_s is None else f"{row.time_s:.1f} s"
    if row.time_s is not None and row.num_reached < row.num_ok:
        time += f" ({row.num_reached} of {row.num_ok})"
    return (
        row.method,
        "—" if row.error_pct is None else f"{row.error_pct:.2f}{spread} %",
        "—" if row.step_ms is None else f"{row.step_ms:.2f} ms",
        "—" if row.ratio is None else f"{row.ratio:.2f} ×",
        time,
        row.cause or "—",
        runs,
    )


def _markdown(headings: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    names = tuple(headings)
    lines = ["| " + " | ".join(names) + " |", "|---" * len(names) + "|"]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def markdown(table: Table, *, errors_only: bool = False) -> str:
    """Return the table for a document; without the columns of times, where these mean nothing."""
    kept = (0, 1, 6) if errors_only else range(7)  # method, error, runs
    pick = lambda texts: tuple(texts[k] for k in kept)  # noqa: E731
    return _markdown(pick(headings(table)), (pick(cells(row)) for row in table.rows))


def bench_cells(record: Record) -> tuple[str, ...]:
    """Return the texts of one record of step times, for `BENCH_HEADINGS`."""
    cell, metrics = record.get("cell") or {}, record.get("metrics") or {}
    prob = cell.get("update_prob", 1)
    rule = (
        str((record.get("config") or {}).get("rule") or "") if record.get("method") in ("dni", "cdni") else ""
    )
    words = [
        str(record.get("method")),
        rule,
        str(cell.get("engine") or ""),
        f"p={prob:g}" if prob != 1 else "",
    ]
    name = ", ".join(word for word in words if word)
    size = (
        name,
        f"{cell.get('layers')} × {cell.get('width')}",
        str(cell.get("batch_size")),
        str(cell.get("threads")),
    )
    if not metrics:
        return (*size, str(record.get("error") or "—"), "—", "—", "—")
    low, high = metrics.get("ratio_to_backprop_p10"), metrics.get("ratio_to_backprop_p90")
    arithmetic = (
        f"{100 * (1 - prob):.0f} % of updates skipped"
        if prob != 1
        else _number(metrics.get("ratio_arithmetic"), "×")
    )
    return (
        *size,
        _number(metrics.get("step_ms_median"), "ms"),
        _number(metrics.get("ratio_to_backprop"), "×"),
        "—" if low is None or high is None else f"{low:.2f}–{high:.2f}",
        arithmetic,
    )


def _number(value: float | None, unit: str) -> str:
    return "—" if value is None else f"{value:.2f} {unit}"


def bench_markdown(records: Iterable[Record]) -> str:
    """Return records of step times as a table for a document."""
    return _markdown(BENCH_HEADINGS, (bench_cells(r) for r in records))
