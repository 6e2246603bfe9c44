"""Tables of trainings: the methods of one setting, and one setting with several budgets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import pandas as pd

from ..records import Record
from . import published
from .frame import common_env, figures, first, good, groups, latest, num_bad, reasons, records_of
from .labels import title_of
from .measures import ERROR, MEASURES, Measure, median, ratio_of, ratio_text, unsteady_steps
from .sheet import Column, Sheet, sheet_of
from .words import DASH, unit

__all__ = ["Table", "budget_groups", "budget_sheet", "cause_of", "table_sheet", "tables_of"]

_FIRST = 4  # measures that stand before what was published of them
_MOST_SHEETS, _MOST_BUDGETS = 6, 6
_CAUSE_NOTE = "Ratio of step times and its cause, of the longest budget: updates that are skipped are less work, not speed."


@dataclass(frozen=True, slots=True)
class Table:
    """Runs that may be compared: same experiment, tier, cell, steps and batch size; of each run the last."""

    runs: pd.DataFrame

    @property
    def record(self) -> Record:
        """One of the records, for what all share."""
        return first(self.runs)

    @property
    def records(self) -> list[Record]:
        """The records."""
        return records_of(self.runs)

    @property
    def title(self) -> str:
        """What is trained on what, for how long."""
        return title_of(self.record)

    @property
    def recurrent(self) -> bool:
        """Are they runs of recurrent networks?"""
        return self.runs["kind"].iloc[0] == "recurrent"

    @property
    def part(self) -> str:
        """``test`` or ``val``: where the error was measured."""
        return "val" if self.record.config.hold_out else "test"

    @property
    def timed(self) -> bool:
        """May the times of its runs be compared?"""
        return common_env(self.runs)

    @property
    def reference(self) -> str:
        """The method that step times are held against."""
        return "bptt" if self.recurrent else "backprop"

    def rows(self) -> list[pd.DataFrame]:
        """Return the runs of each row: those of a method and of what is particular about it, the reference first."""
        return [runs for _, runs in groups(self.runs.sort_values("place", kind="stable"), "label")]


def tables_of(frame: pd.DataFrame) -> list[Table]:
    """Return a table for each setting and number of steps.

    Args:
        frame: of trainings, without those that a table of their own kind gathers.
    """
    return [Table(latest(runs, "label", "seed")) for _, runs in groups(frame, "setting", "steps")]


def table_sheet(table: Table) -> Sheet:
    """Return the table as text."""
    reference = good(table.runs[table.runs["label"] == table.reference])
    columns = _columns(table, reference)
    rows = table.rows()
    sheet = sheet_of(
        table.title,
        columns,
        rows,
        is_bad=lambda runs: num_bad(runs) > 0,
        failures=[
            f"{r['label'].iloc[0]}: {'; '.join(sorted(reasons(r, 400))[:10])}" for r in rows if num_bad(r)
        ],
    )
    notes: list[str] = []
    if table.recurrent:
        shown = [f for runs in rows if (f := _figure(runs)) is not None]
        notes += published.recurrent_notes(table.record.cell, shown, "Column")
    elif "published" in sheet.headings:
        notes += [published.schedule_note()]
    remarks = ["Estimated: a step's arithmetic over backpropagation's, worked out before the run."]
    remarks = remarks if "estimated" in sheet.headings else []
    if table.recurrent and table.part == "val":
        remarks += ["Measured on training examples that were held out."]
    if table.part == "test":
        remarks += published.notes(table.record.cell, set(table.runs["method"]))
    return replace(sheet, notes=tuple(notes), remarks=tuple(remarks))


def _columns(table: Table, reference: pd.DataFrame) -> list[Column[pd.DataFrame]]:
    timed, recurrent = table.timed, table.recurrent
    target = table.record.config.target_error_pct
    words = "target" if target is None else f"{target:g} % error"
    measured = "validation error" if table.part == "val" else "test error"
    error = Measure(f"{table.part}_error_pct", measured, 2, " %")
    # What was measured in another way than by its error has no column of errors.
    others = recurrent or any(m.values(table.runs) for m in MEASURES)
    unsaid = recurrent or not timed

    def measure(m: Measure) -> Column[pd.DataFrame]:
        return Column(
            m.heading, lambda r: m.show(r) if timed or not m.timed else DASH, optional=True, timed=m.timed
        )

    def step(runs: pd.DataFrame) -> str:
        return unit("step_ms", median(figures(good(runs), "time.step_ms_median"))) if timed else DASH

    def ratio(runs: pd.DataFrame) -> str:
        found = ratio_of(good(runs), reference) if timed else None
        same = len(reference) and runs["label"].iloc[0] == table.reference
        return ratio_text(found, unsteady=not same and unsteady_steps(good(runs), reference))

    def cause(runs: pd.DataFrame) -> str:
        found = (
            ratio_of(good(runs), reference) if timed and not recurrent else None
        )  # whose updates may differ
        return cause_of(found, _skipped(runs), median(figures(runs, "estimate.ratio_to_backprop"))) or DASH

    return [
        Column("method", lambda r: r["label"].iloc[0], key=True),
        Column(error.heading, error.show, optional=others),
        *map(measure, MEASURES[:_FIRST]),
        Column("published", lambda r: _published(r, table.part), optional=True),
        *map(measure, MEASURES[_FIRST:]),
        Column("step", step, timed=True, optional=unsaid),
        Column(f"ratio to {table.reference}", ratio, timed=True, optional=unsaid),
        Column(
            "estimated",
            lambda r: unit("ratio", median(figures(r, "estimate.ratio_to_backprop"))),
            late=True,
            timed=True,
            optional=True,
        ),
        Column(f"time to {words}", lambda r: _time_to(r) if timed else DASH, timed=True, optional=unsaid),
        Column("cause of speed-up", cause, late=True, timed=True, optional=unsaid),
        Column("runs", _count),
    ]


def _skipped(runs: pd.DataFrame) -> float | None:
    found = figures(good(runs), "metrics.updates_skipped_share")
    return sum(found) / len(found) if found else None


def _count(runs: pd.DataFrame) -> str:
    return f"{len(good(runs))}" + (f", {num_bad(runs)} not ok" if num_bad(runs) else "")


def _time_to(runs: pd.DataFrame) -> str:
    """Return the median time to the target error, and how many of the runs reached it."""
    reached, ended = figures(good(runs), "metrics.time_to_target_s"), len(good(runs))
    share = f" ({len(reached)} of {ended})" if len(reached) < ended else ""
    return f"{median(reached):.1f} s{share}" if reached else DASH


def _figure(runs: pd.DataFrame) -> published.Figure | None:
    record = first(runs)
    return published.recurrent_figure(record.cell, record.method)


def _published(runs: pd.DataFrame, part: str) -> str:
    """Return the published test error: only of what the paper trained, every update made, all layers cut."""
    record = first(runs)
    if part == "test" and record.cell.update_prob in (None, 1) and not record.cell.at:
        error = published.errors_pct(record.cell).get(record.method)
        if error is not None:
            return f"{error:.1f} %"
    figure = _figure(runs)
    return DASH if figure is None else str(figure)


def cause_of(ratio: float | None, skipped_share: float | None, estimate: float | None = None) -> str:
    """Say why a step is faster than backpropagation's, where it is by more than noise.

    A step that leaves out updates does less work; that is no gain of decoupling, and is said apart. A step
    with more arithmetic than backpropagation's that took less time on one machine was not measured fairly,
    or not long enough.
    """
    if ratio is None or ratio > 0.97:
        return ""
    if skipped_share:
        return f"{100 * skipped_share:.0f} % of updates skipped"
    return "more work, faster: measure again" if (estimate or 0) > 1.03 else "equal work, faster"


def budget_groups(tables: Sequence[Table]) -> list[list[Table]]:
    """Return the tables that differ in their number of steps only, from the shortest budget to the longest."""
    found: dict[str, list[Table]] = {}
    for table in tables:
        if table.record.steps is not None and table.part == "test" and not table.recurrent:
            found.setdefault(table.runs["setting"].iloc[0], []).append(table)
    ordered = [sorted(group, key=_steps) for group in found.values() if len(group) > 1]
    return ordered[:_MOST_SHEETS]


def _steps(table: Table) -> float:
    return float(table.runs["steps"].iloc[0])


def budget_sheet(tables: Sequence[Table], *, times: bool = True) -> Sheet:
    """Return one table for a setting that was trained with several numbers of steps: error and time of each.

    Args:
        tables: one for each budget.
        times: are columns of times shown?
    """
    most = min(len(tables), _MOST_BUDGETS)
    chosen = [tables[round(k * (len(tables) - 1) / (most - 1))] for k in range(most)]
    runs = pd.concat([table.runs for table in reversed(chosen)])
    sheets = [table_sheet(table) for table in chosen]
    columns: list[Column[pd.DataFrame]] = [Column("method", lambda r: r["label"].iloc[0], key=True)]
    for table in chosen:
        columns += _budget_columns(table)

    def ratio(runs: pd.DataFrame) -> str:
        return _longest(sheets, runs)[0]

    def cause(runs: pd.DataFrame) -> str:
        return _longest(sheets, runs)[1]

    columns += [
        Column("ratio to backprop", ratio, late=True, timed=True, optional=True),
        Column("cause of speed-up", cause, late=True, timed=True, optional=True),
    ]
    rows = [group for _, group in groups(runs, "label")]
    sheet = sheet_of(
        "budgets · " + title_of(chosen[0].record, without_steps=True),
        columns,
        rows,
        is_bad=lambda r: num_bad(r) > 0,
        failures=[f"{r['label'].iloc[0]}: {reason}" for r in rows for reason in reasons(r, 400)],
        times=times,
    )
    notes = ["Test error in %: mean ± half the distance between best and worst (runs)."]
    if any(h.endswith("time") for h in sheet.headings):
        notes += ["Time of training, without evaluations: the median."]
    notes += [_CAUSE_NOTE] if "ratio to backprop" in sheet.headings else []
    return replace(sheet, notes=tuple(notes))


def _budget_columns(table: Table) -> list[Column[pd.DataFrame]]:
    def own(runs: pd.DataFrame) -> pd.DataFrame:
        return runs[runs["steps"] == _steps(table)]

    def time(runs: pd.DataFrame) -> str:
        seconds = median(figures(good(own(runs)), "time.train_s")) if table.timed else None
        return DASH if seconds is None else f"{seconds:,.1f} s"

    words = f"{_steps(table):,.0f} steps"
    return [
        Column(f"{words}: error", lambda r: ERROR.counted(own(r))),
        Column(f"{words}: time", time, timed=True, optional=True),
    ]


def _longest(sheets: Sequence[Sheet], runs: pd.DataFrame) -> tuple[str, str]:
    """Return ratio and cause of a row, of the longest budget that has them."""
    for sheet in reversed(sheets):
        for row in sheet.rows:
            said = dict(zip(sheet.headings, row, strict=True))
            if row[0] == runs["label"].iloc[0] and said.get("ratio to backprop", DASH) != DASH:
                return said["ratio to backprop"], said["cause of speed-up"]
    return DASH, DASH
