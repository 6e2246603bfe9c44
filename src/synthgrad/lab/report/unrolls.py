"""Recurrent runs over the length of their unrolls, as the paper's tables: what was reached, and what it took."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

import pandas as pd

from ..records import Record
from ..records.parts import as_number
from . import published
from .frame import common_env, figures, first, good, groups, latest, num_bad, reasons, records_of
from .labels import title_of
from .measures import Measure, measure_named, median, ratio_of, ratio_text, unsteady_steps
from .sheet import Column, Sheet, sheet_of
from .words import DASH, unit

__all__ = [
    "SEQUENCES",
    "TEXT",
    "Kind",
    "UnrollSweep",
    "cost_sheet",
    "reached_sheet",
    "unroll_sweeps",
    "without_sweeps",
]

_MOST_COLUMNS = 12
_MEDIANS = (
    "Data and time: the median over the runs, when it was first measured; steps and their ratio: medians."
)


@dataclass(frozen=True, slots=True)
class Kind:
    """What runs are measured by.

    Attributes:
        metric: the figure of a finished run.
        level: what is measured on the way, at points of the curve.
        data: of a point: how much was seen until then.
        things: what that counts.
        least: is less better?
        by_steps: is a budget a number of steps, whatever the length of the unrolls? Else it is one of data.
        note: what the figure is.
        mark: words for a level, in a heading.
        reached: what the level is, in a sentence.
    """

    metric: str
    level: str
    data: str
    things: str
    least: bool
    by_steps: bool
    note: str
    mark: str
    reached: str

    def best(self, values: Iterable[float]) -> float:
        """Return the best of some values."""
        return min(values) if self.least else max(values)

    def worst(self, values: Iterable[float]) -> float:
        """Return the worst of some values."""
        return max(values) if self.least else min(values)


#: Episodes that grow: a step is a batch of whole ones.
SEQUENCES = Kind(
    *("sequence_length", "sequence_length", "sequences_seen", "sequences"),
    least=False,
    by_steps=True,
    note="The longest sequence that was solved: characters to be written, plus three.",
    mark="to length {:g}",
    reached="Length {:g} is what every method reaches with all its seeds, at the best T of each.",
)
#: One text: a step is an unroll, so that longer ones make fewer steps of it.
TEXT = Kind(
    *("bits_per_char", "val_bits_per_char", "chars_seen", "characters"),
    least=True,
    by_steps=False,
    note="Bits per character of the test text, at the weights of the lowest validation error. Every T reads the same "
    "data: shorter unrolls make more updates.",
    mark="to {:.3f} bits",
    reached="{:.3f} bits per character, in validation, is what every method reaches with all its seeds, at the best T "
    "of each.",
)


@dataclass(frozen=True, slots=True)
class UnrollSweep:
    """Runs that differ in method, length of the unrolls and seed only, with one budget; of each run the last.

    Attributes:
        runs: in the order of the methods, the reference first.
        kind: what they are measured by.
    """

    runs: pd.DataFrame
    kind: Kind

    @property
    def records(self) -> list[Record]:
        """The records."""
        return records_of(self.runs)

    @property
    def unrolls(self) -> list[float]:
        """The lengths of the unrolls, ``T``, in order."""
        return sorted(set(self.runs["unroll"]))

    @property
    def timed(self) -> bool:
        """May the times of the runs be compared?"""
        return common_env(self.runs)

    def of(self, unroll: float) -> UnrollSweep:
        """Return the runs with unrolls of one length."""
        return UnrollSweep(self.runs[self.runs["unroll"] == unroll], self.kind)

    def cells(self) -> dict[tuple[str, float], pd.DataFrame]:
        """Return the runs by row and ``T``."""
        return dict(groups(self.runs, "label", "unroll"))

    def rows(self) -> list[pd.DataFrame]:
        """Return the runs of each row."""
        return [runs for _, runs in groups(self.runs, "label")]


def unroll_sweeps(frame: pd.DataFrame, *, least: int = 2) -> list[UnrollSweep]:
    """Return the sweeps among the records, one for each setting and budget that runs share.

    Args:
        frame: of any records.
        least: how many lengths of unrolls a sweep must have.
    """
    sweeps: list[UnrollSweep] = []
    for runs, kind in _gathered(frame, least):
        last = latest(runs, "label", "unroll", "seed").sort_values("place", kind="stable")
        sweeps.append(UnrollSweep(last, kind))
    return sweeps


def without_sweeps(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the records that no sweep over several lengths gathers."""
    return frame.drop(index=[index for runs, _ in _gathered(frame, 2) for index in runs.index])


def _gathered(frame: pd.DataFrame, least: int) -> Iterator[tuple[pd.DataFrame, Kind]]:
    unrolled = frame[(frame["kind"] == "recurrent") & frame["unroll"].notna()]
    for _, found in groups(unrolled, "apart"):
        kind = _kind_of(found)
        for _, runs in groups(found.assign(budget=_budgets(found, kind)), "budget"):
            if runs["unroll"].nunique() >= least:
                yield runs, kind


def _kind_of(runs: pd.DataFrame) -> Kind:
    for kind in (SEQUENCES, TEXT):
        if figures(runs, f"metrics.{kind.metric}"):
            return kind
    # None of them ended well: the curve, or else the name, says what was tried.
    curves = any("chars_seen" in r.curve[0] for r in records_of(runs) if r.curve)
    return TEXT if curves or first(runs).experiment == "charlm" else SEQUENCES


def _budgets(runs: pd.DataFrame, kind: Kind) -> pd.Series:
    """Return a number for the budget of each run.

    A budget of data is met up to an unroll: runs share one if none falls short of the longest by an unroll.
    """
    if kind.by_steps:
        return runs["steps"].fillna(-1.0)
    chars = runs["steps"].fillna(0.0) * runs["unroll"]
    budgets = pd.Series(0.0, index=runs.index)
    longest: float | None = None
    for index, seen, unroll in sorted(
        zip(runs.index, chars, runs["unroll"], strict=True), key=lambda run: -run[1]
    ):
        if longest is None or longest - seen >= unroll:
            longest = seen
        budgets[index] = longest
    return budgets


def reached_sheet(sweep: UnrollSweep) -> Sheet:
    """Return what was reached: a row for each method, a column for each ``T``, published figures in brackets."""
    measure, unrolls = measure_named(sweep.kind.metric), sweep.unrolls[:_MOST_COLUMNS]
    shown: list[published.Figure] = []

    def cell_of(unroll: float) -> Callable[[pd.DataFrame], str]:
        def cell(runs: pd.DataFrame) -> str:
            own = runs[runs["unroll"] == unroll]
            if not len(own):
                return DASH
            record = first(own)
            figure = published.recurrent_figure(record.cell, record.method)
            shown.extend([] if figure is None else [figure])
            return measure.counted(own) + ("" if figure is None else f" [{figure}]")

        return cell

    sheet = sheet_of(
        f"{measure.heading} · {_title(sweep)}",
        [_ROW, *(Column(f"T={unroll:g}", cell_of(unroll)) for unroll in unrolls)],
        sweep.rows(),
        is_bad=lambda runs: num_bad(runs) > 0,
        failures=[
            f"{row}, T={unroll:g}: {reason}"
            for (row, unroll), runs in sweep.cells().items()
            for reason in reasons(runs)
        ],
    )
    notes = [f"{sweep.kind.note} Mean ± half the distance between best and worst (runs)."]
    notes += published.recurrent_notes(sweep.records[0].cell, shown, "In brackets")
    if (more := len(sweep.unrolls) - len(unrolls)) > 0:
        notes.append(f"{more} more lengths of unrolls are in the records.")
    return replace(sheet, notes=tuple(notes))


_ROW: Column[pd.DataFrame] = Column("method", lambda runs: runs["label"].iloc[0], key=True)


def cost_sheet(sweep: UnrollSweep, *, times: bool = True) -> Sheet:
    """Return what it took: data and time to a level that all methods reach, and the time of a step.

    Args:
        sweep: the runs.
        times: are columns of times shown?
    """
    kind, timed = sweep.kind, sweep.timed and times
    level = _common_level(sweep)
    rows = [runs for unroll in sweep.unrolls for runs in sweep.of(unroll).rows()]
    steps = {unit("", runs["steps"].iloc[0]) for runs in rows}
    mark = "" if level is None else kind.mark.format(level)
    bits = Measure("val_bits_per_char", "validation bits", 3)

    def ratio(runs: pd.DataFrame) -> str:
        unroll = runs["unroll"].iloc[0]
        reference = sweep.runs[(sweep.runs["unroll"] == unroll) & (sweep.runs["label"] == "bptt")]
        own, theirs = good(runs), good(reference)
        unsteady = runs["label"].iloc[0] != "bptt" and unsteady_steps(own, theirs)
        return ratio_text(ratio_of(own, theirs), unsteady=unsteady)

    columns: list[Column[pd.DataFrame]] = [
        _ROW,
        Column("T", lambda runs: f"{runs['unroll'].iloc[0]:g}", key=True),
        # What is the same in all rows stands in the title.
        Column("steps", lambda runs: unit("", runs["steps"].iloc[0]) if len(steps) > 1 else DASH, late=True),
        Column("validation bits", lambda runs: bits.show(runs) if kind is TEXT else DASH),
        Column(f"{kind.things} {mark}", lambda runs: _reach(runs, kind, level, kind.data, "", 0)),
        Column(f"time {mark}", lambda runs: _reach(runs, kind, level, "elapsed_s", " s", 1), timed=True),
        Column(
            "step",
            lambda runs: unit("step_ms", median(figures(good(runs), "time.step_ms_median"))),
            timed=True,
        ),
        Column("ratio to bptt", ratio, timed=True),
        Column(
            "runs", lambda runs: f"{len(good(runs))}" + (f", {num_bad(runs)} not ok" if num_bad(runs) else "")
        ),
    ]
    sheet = sheet_of(
        f"{'data and time' if timed else 'data'} · {_title(sweep)}",
        columns,
        rows,
        is_bad=lambda runs: num_bad(runs) > 0,
        notes=() if level is None else (kind.reached.format(level), _MEDIANS),
        times=timed,
    )
    silent = {h for k, h in enumerate(sheet.headings) if all(row[k] == DASH for row in sheet.rows)}
    return sheet.without(lambda column: column.heading in silent)


def _title(sweep: UnrollSweep) -> str:
    """Return what is trained on what, for how long, without ``T``."""
    if sweep.kind.by_steps:
        return title_of(sweep.records[0], without_unroll=True)
    batch = as_number(sweep.records[0].batch_size) or 0.0
    chars = (batch * sweep.runs["steps"].fillna(0.0) * sweep.runs["unroll"]).max()
    title = title_of(sweep.records[0], without_unroll=True, without_steps=True)
    return title.replace("batches of", f"{chars:,.0f} characters in batches of")


def _common_level(sweep: UnrollSweep) -> float | None:
    """Return the worst of what the methods reach, each at its best ``T`` and with every seed that ended well."""
    kind = sweep.kind
    reached: dict[str, list[float]] = {}
    for (row, _), runs in sweep.cells().items():
        levels = [
            [v for p in r.curve if (v := p.number(kind.level)) is not None] for r in records_of(good(runs))
        ]
        if ends := [kind.best(found) for found in levels if found]:
            reached.setdefault(row, []).append(kind.worst(ends))
    level = kind.worst(kind.best(ends) for ends in reached.values()) if reached else None
    return level or None  # no sequence at all is no mark to reach


def _reach(runs: pd.DataFrame, kind: Kind, level: float | None, what: str, sign: str, digits: int) -> str:
    """Return the median of what runs had seen, or of the time, when a level was first measured; how many reached it."""
    ended = records_of(good(runs))
    if level is None or not len(ended):
        return DASH
    found = [seen for r in ended if (seen := _first(r, kind, level, what)) is not None]
    if not found:
        return "not reached"
    share = f" ({len(found)} of {len(ended)})" if len(found) < len(ended) else ""
    return f"{median(found):,.{digits}f}{sign}{share}"


def _first(record: Record, kind: Kind, level: float, what: str) -> float | None:
    for point in record.curve:
        value = point.number(kind.level)
        if value is not None and kind.best((value, level)) == value:
            return point.number(what)
    return None
