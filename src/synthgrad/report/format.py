"""The text of a table of trainings, the same on the terminal, in the page and in the documents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from statistics import mean

from . import published
from .fields import part, text
from .sheet import DASH, Sheet, as_markdown
from .summary import Row, Table

__all__ = ["markdown", "table_sheet"]

#: Columns of times, which mean nothing of runs that shared the machine.
_TIMES = ("step", "ratio to backprop", "estimated", "cause of speed-up")
#: Columns that only stand in a table that has something to say there.
_OPTIONAL = ("published", "estimated", "bits per character", "sequence length")


def table_sheet(table: Table) -> Sheet:
    """Return the table as text; a dash where there is nothing to say."""
    measured = "validation" if table.part == "val" else "test"
    target = "target" if table.target_error_pct is None else f"{table.target_error_pct:g} % error"
    columns = [_cells(row, measured, target) for row in table.rows]
    sheet = Sheet(
        title=table.title,
        headings=tuple(columns[0]),
        rows=tuple(tuple(cells.values()) for cells in columns),
        bad=tuple(row.num_bad > 0 for row in table.rows),
        failures=tuple(f"{row.method}: {row.note}" for row in table.rows if row.note),
    )
    recurrent = any(row.bits_per_char or row.sequence_length for row in table.rows)
    untimed = () if table.timed else (*_TIMES, f"time to {target}")
    sheet = sheet.without_empty((*_OPTIONAL, *([f"{measured} error"] if recurrent else []), *untimed))
    return replace(sheet, notes=_notes(table, sheet))


def _notes(table: Table, sheet: Sheet) -> tuple[str, ...]:
    cell = part(table.records[0], "cell")
    notes = [published.schedule_note()] if "published" in sheet.headings else []
    if "estimated" in sheet.headings:
        notes += ["Estimated: a step's arithmetic over backpropagation's, worked out before the run."]
    if table.part == "test":
        notes += published.notes(cell, {text(r.get("method")) for r in table.records})
    return tuple(notes)


def _cells(row: Row, measured: str, target: str) -> dict[str, str]:
    """Return the texts of a row by the headings of their columns."""
    spread = "" if row.spread_pct is None else f" ± {row.spread_pct:.2f}"
    time = DASH if row.time_s is None else f"{row.time_s:.1f} s"
    if row.time_s is not None and row.num_reached < row.num_ok:
        time += f" ({row.num_reached} of {row.num_ok})"
    return {
        "method": row.method,
        f"{measured} error": DASH if row.error_pct is None else f"{row.error_pct:.2f}{spread} %",
        "published": DASH if row.published_pct is None else f"{row.published_pct:.1f} %",
        "bits per character": _spread(row.bits_per_char, 3),
        "sequence length": _spread(row.sequence_length, 1),
        "step": DASH if row.step_ms is None else f"{row.step_ms:.2f} ms",
        "ratio to backprop": DASH if row.ratio is None else f"{row.ratio:.2f} ×",
        "estimated": DASH if row.estimate is None else f"{row.estimate:.2f} ×",
        f"time to {target}": time,
        "cause of speed-up": row.cause or DASH,
        "runs": str(row.num_ok) + (f", {row.num_bad} not ok" if row.num_bad else ""),
    }


def _spread(values: Sequence[float], digits: int) -> str:
    if not values:
        return DASH
    half = (max(values) - min(values)) / 2
    return f"{mean(values):.{digits}f}" + (f" ± {half:.{digits}f}" if len(values) > 1 else "")


def markdown(table: Table, *, errors_only: bool = False) -> str:
    """Return the table for a document; without the columns of times, where these mean nothing.

    Where it has published figures, a line under it says what budget they had.
    """
    sheet = table_sheet(table)
    if errors_only:
        sheet = sheet.without(lambda heading: heading in _TIMES or heading.startswith("time to "))
    said = f"\n*{published.schedule_note()}*\n" if "published" in sheet.headings else ""
    return as_markdown(sheet) + said
