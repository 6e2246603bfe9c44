"""The text of a table of trainings, the same on the terminal, in the page and in the documents."""

from __future__ import annotations

from dataclasses import replace

from . import published
from .fields import part, text
from .measures import MEASURES
from .sheet import DASH, Sheet, as_markdown
from .summary import Row, Table

__all__ = ["markdown", "table_sheet"]

#: Columns of times, which mean nothing of runs that shared the machine.
_TIMES = ("step", "estimated", "cause of speed-up")
_TIMED_MEASURES = tuple(m.heading for m in MEASURES if m.timed)
#: How many measures stand before what was published of them.
_FIRST = 4
#: Columns that only stand in a table that has something to say there.
_OPTIONAL = ("published", "estimated", *(m.heading for m in MEASURES))


def table_sheet(table: Table) -> Sheet:
    """Return the table as text; a dash where there is nothing to say."""
    measured = "validation" if table.part == "val" else "test"
    target = "target" if table.target_error_pct is None else f"{table.target_error_pct:g} % error"
    columns = [_cells(row, measured, target, table.reference) for row in table.rows]
    sheet = Sheet(
        title=table.title,
        headings=tuple(columns[0]),
        rows=tuple(tuple(cells.values()) for cells in columns),
        bad=tuple(row.num_bad > 0 for row in table.rows),
        failures=tuple(f"{row.method}: {row.note}" for row in table.rows if row.note),
    )
    times = (*_TIMES, f"ratio to {table.reference}", f"time to {target}")
    optional = (*_OPTIONAL, *(times if table.recurrent or not table.timed else ()))
    # What was measured in another way than by its error has no column of errors.
    others = table.recurrent or any(row.measures for row in table.rows)
    optional = (*optional, f"{measured} error") if others else optional
    sheet = sheet.without_empty(optional)
    return replace(sheet, notes=_notes(table, sheet))


def _notes(table: Table, sheet: Sheet) -> tuple[str, ...]:
    cell = part(table.records[0], "cell")
    notes = _published_notes(table, sheet)
    if "estimated" in sheet.headings:
        notes += ["Estimated: a step's arithmetic over backpropagation's, worked out before the run."]
    if table.recurrent and table.part == "val":
        notes += ["Measured on training examples that were held out."]
    if table.part == "test":
        notes += published.notes(cell, {text(r.get("method")) for r in table.records})
    return tuple(notes)


def _published_notes(table: Table, sheet: Sheet) -> list[str]:
    """Say of published figures whose they are; of a recurrent network also what was claimed of it."""
    if table.recurrent:
        shown = [row.figure for row in table.rows if row.figure is not None]
        return published.recurrent_notes(part(table.records[0], "cell"), shown, "Column")
    return [published.schedule_note()] if "published" in sheet.headings else []


def _cells(row: Row, measured: str, target: str, reference: str) -> dict[str, str]:
    """Return the texts of a row by the headings of their columns."""
    spread = "" if row.spread_pct is None else f" ± {row.spread_pct:.2f}"
    time = DASH if row.time_s is None else f"{row.time_s:.1f} s"
    if row.time_s is not None and row.num_reached < row.num_ok:
        time += f" ({row.num_reached} of {row.num_ok})"
    return {
        "method": row.method,
        f"{measured} error": DASH if row.error_pct is None else f"{row.error_pct:.2f}{spread} %",
        **{m.heading: m.show(row.measures.get(m.metric, ())) for m in MEASURES[:_FIRST]},
        "published": _published(row),
        **{m.heading: m.show(row.measures.get(m.metric, ())) for m in MEASURES[_FIRST:]},
        "step": DASH if row.step_ms is None else f"{row.step_ms:.2f} ms",
        f"ratio to {reference}": DASH if row.ratio is None else f"{row.ratio:.2f} ×",
        "estimated": DASH if row.estimate is None else f"{row.estimate:.2f} ×",
        f"time to {target}": time,
        "cause of speed-up": row.cause or DASH,
        "runs": str(row.num_ok) + (f", {row.num_bad} not ok" if row.num_bad else ""),
    }


def _published(row: Row) -> str:
    if row.published_pct is not None:
        return f"{row.published_pct:.1f} %"
    return DASH if row.figure is None else str(row.figure)


def markdown(table: Table, *, errors_only: bool = False) -> str:
    """Return the table for a document; without the columns of times, where these mean nothing.

    Where it has published figures, lines under it say what budget they had.
    """
    sheet = table_sheet(table)
    if errors_only:
        gone = (*_TIMES, *_TIMED_MEASURES)
        sheet = sheet.without(lambda h: h in gone or h.startswith(("time to ", "ratio to ")))
    said = "".join(f"\n*{note}*\n" for note in _published_notes(table, sheet))
    return as_markdown(sheet) + said
