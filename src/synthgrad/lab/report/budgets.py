"""One compact table for runs that differ in their number of steps only: error and time of each budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from statistics import median

from ..records import Record
from .errors import error_cell
from .fields import number, part, text
from .labels import row_label, title_of
from .setting import setting_key
from .sheet import DASH, Sheet, unit
from .summary import Row, Table

__all__ = ["budget_sheets", "single_tables"]

_MOST_SHEETS, _MOST_BUDGETS = 6, 6
_NOTE = "Test error in %: mean ± half the distance between best and worst (runs)."
_TIME_NOTE = "Time of training, without evaluations: the median."
_CAUSE_NOTE = "Ratio of step times and its cause, of the longest budget: updates that are skipped are less work, not speed."


def budget_sheets(tables: Sequence[Table], *, errors_only: bool = False) -> list[Sheet]:
    """Return a table for each setting that was trained with several numbers of steps, methods in its rows.

    Args:
        tables: of any trainings; those of held-out data have none.
        errors_only: leave out times, for runs that shared their machine.
    """
    groups = [group for group in _by_setting(tables) if len(group) > 1]
    return [_sheet(_chosen(group), timed=not errors_only) for group in groups[:_MOST_SHEETS]]


def single_tables(tables: Sequence[Table]) -> list[Table]:
    """Return the tables that no table of budgets holds."""
    gathered = {id(t) for group in _by_setting(tables) if len(group) > 1 for t in group}
    return [table for table in tables if id(table) not in gathered]


def _by_setting(tables: Sequence[Table]) -> list[list[Table]]:
    groups: dict[str, list[Table]] = {}
    for table in tables:
        if number(table.records[0], "steps") is not None and table.part == "test" and not table.recurrent:
            groups.setdefault(setting_key(table.records[0]), []).append(table)
    return list(groups.values())


def _steps(table: Table) -> float:
    return number(table.records[0], "steps") or 0.0


def _chosen(group: Sequence[Table]) -> list[Table]:
    """Return the tables from the shortest budget to the longest; of many some, these two among them."""
    ordered = sorted(group, key=_steps)
    most = min(len(ordered), _MOST_BUDGETS)
    return [ordered[round(k * (len(ordered) - 1) / (most - 1))] for k in range(most)]


def _sheet(tables: Sequence[Table], *, timed: bool) -> Sheet:
    labels = list(dict.fromkeys(row.method for table in reversed(tables) for row in table.rows))
    lines: list[tuple[str, ...]] = []
    bad: list[bool] = []
    failures: list[str] = []
    headings = ["method"]
    for table in tables:
        budget = f"{_steps(table):,.0f} steps"
        headings += [f"{budget}: error", f"{budget}: time"]
    for label in labels:
        cells = [label]
        found: list[Row] = []
        for table in tables:
            records = [r for r in table.records if row_label(r) == label]
            cells += [error_cell(records), _time(records) if timed and table.timed else DASH]
            found += [row for row in table.rows if row.method == label]
        measured = [row for row in found if timed and row.ratio is not None]
        ratio, cause = (measured[-1].ratio, measured[-1].cause) if measured else (None, "")
        lines.append((*cells, unit("ratio", ratio), cause or DASH))
        bad.append(any(row.num_bad for row in found))
        failures += [f"{label}: {row.note}" for row in found if row.note]
    headings += ["ratio to backprop", "cause of speed-up"]
    sheet = Sheet(
        title="budgets · " + _title(tables[0].records[0]),
        headings=tuple(headings),
        rows=tuple(lines),
        bad=tuple(bad),
        failures=tuple(dict.fromkeys(failures)),
    )
    sheet = sheet.without_empty([h for h in headings if h.endswith("time") or h in headings[-2:]])
    notes = [_NOTE]
    notes += [_TIME_NOTE] if any(h.endswith("time") for h in sheet.headings) else []
    notes += [_CAUSE_NOTE] if "ratio to backprop" in sheet.headings else []
    return replace(sheet, notes=tuple(notes))


def _title(record: Record) -> str:
    """Title of the table of one budget, without its steps."""
    batch = text(record.get("batch_size"), 12)
    return title_of({**record, "steps": ""}).replace(f" steps of {batch}", f"batches of {batch}")


def _time(records: Sequence[Record]) -> str:
    found = (number(part(r, "time"), "train_s") for r in records if r.get("status") == "ok")
    seconds = [value for value in found if value is not None]
    return f"{median(seconds):,.1f} s" if seconds else DASH
