"""Recurrent runs over the length of their unrolls, as the paper's tables: a row for each method, a column for each T."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ..records import Record
from . import published
from .fields import number, part, status, text
from .labels import title_of
from .levels import common_level, reach_cell
from .measures import measure_cell, measure_named, values_of
from .sheet import DASH, Sheet, unit
from .summary import ratio_of, step_ms_of
from .unrolls import SEQUENCES, TEXT, UnrollSweep, unroll_sweeps

__all__ = ["unroll_costs", "unroll_grid", "unroll_grids", "unroll_sheets"]

_MOST_COLUMNS = 12
_SPREAD = "Mean ± half the distance between best and worst (runs)."
_MEASURED = {
    SEQUENCES.metric: "The longest sequence that was solved: characters to be written, plus three.",
    TEXT.metric: "Bits per character of the test text, at the weights of the lowest validation error. Every T reads the same data: "
    "shorter unrolls make more updates.",
}
_LEVEL = {
    SEQUENCES.metric: "Length {level:g} is what every method reaches with all its seeds, at the best T of each.",
    TEXT.metric: "{level:.3f} bits per character, in validation, is what every method reaches with all its seeds, at "
    "the best T of each.",
}
_MEDIANS = (
    "Data and time: the median over the runs, when it was first measured; steps and their ratio: medians."
)
#: What the level is called in a heading.
_MARK = {SEQUENCES.metric: "to length {:g}", TEXT.metric: "to {:.3f} bits"}


def unroll_sheets(records: Iterable[Record], *, errors_only: bool = False) -> list[Sheet]:
    """Return two tables for each sweep over several lengths: what was reached, and what it took.

    Args:
        records: of any experiments.
        errors_only: leave out times, for runs that shared their machine.
    """
    sweeps = unroll_sweeps(records)
    return [s for sweep in sweeps for s in (unroll_grid(sweep), unroll_costs(sweep, errors_only=errors_only))]


def unroll_grids(records: Iterable[Record]) -> list[Sheet]:
    """Return what was reached, for each sweep, also where there is one length only."""
    return [unroll_grid(sweep) for sweep in unroll_sweeps(records, least=1)]


def unroll_grid(sweep: UnrollSweep) -> Sheet:
    """Return what was reached: a row for each method, a column for each ``T``, published figures in brackets."""
    measure = measure_named(sweep.kind.metric)
    unrolls = sweep.unrolls[:_MOST_COLUMNS]
    figures: list[published.Figure] = []
    lines: list[tuple[str, ...]] = []
    for row in sweep.rows:
        cells: list[str] = []
        for unroll in unrolls:
            runs = sweep.runs(row, unroll)
            figure = (
                published.recurrent_figure(part(runs[0], "cell"), runs[0].get("method")) if runs else None
            )
            figures += [] if figure is None else [figure]
            cells.append(measure_cell(runs, measure) + ("" if figure is None else f" [{figure}]"))
        lines.append((row, *cells))
    notes = [f"{_MEASURED[sweep.kind.metric]} {_SPREAD}"]
    notes += published.recurrent_notes(part(sweep.records[0], "cell"), figures, "In brackets")
    if (more := len(sweep.unrolls) - len(unrolls)) > 0:
        notes.append(f"{more} more lengths of unrolls are in the records.")
    return Sheet(
        title=f"{measure.heading} · {_title(sweep)}",
        headings=("method", *(f"T={unroll:g}" for unroll in unrolls)),
        rows=tuple(lines),
        bad=tuple(any(_bad(r) for u in sweep.unrolls for r in sweep.runs(row, u)) for row in sweep.rows),
        failures=tuple(_failures(sweep)),
        notes=tuple(notes),
    )


def unroll_costs(sweep: UnrollSweep, *, errors_only: bool = False) -> Sheet:
    """Return what it took: data and time to a level that all methods reach, and the time of a step.

    Args:
        sweep: the runs.
        errors_only: leave out times.
    """
    kind, level = sweep.kind, common_level(sweep)
    timed = sweep.timed and not errors_only
    mark = "" if level is None else _MARK[kind.metric].format(level)
    lines: list[dict[str, str]] = []
    bad: list[bool] = []
    for unroll in sweep.unrolls:
        reference = _good(sweep.runs("bptt", unroll))
        for row in sweep.rows:
            if not (runs := sweep.runs(row, unroll)):
                continue
            good = _good(runs)
            line = {"method": row, "T": f"{unroll:g}", "steps": _steps(runs)}
            if kind is TEXT:
                values = values_of(good, "val_bits_per_char")
                line["validation bits"] = measure_named(kind.metric).show(values)
            if level is not None:
                line[f"{kind.things} {mark}"] = reach_cell(runs, kind, level, kind.data, "", 0)
            if level is not None and timed:
                line[f"time {mark}"] = reach_cell(runs, kind, level, "elapsed_s", " s", 1)
            if timed:
                line["step"] = unit("step_ms", step_ms_of(good))
                line["ratio to bptt"] = unit("ratio", ratio_of(good, reference))
            line["runs"] = str(len(good)) + (
                f", {len(runs) - len(good)} not ok" if len(good) < len(runs) else ""
            )
            lines.append(line)
            bad.append(len(good) < len(runs))
    headings = tuple(lines[0])
    sheet = Sheet(
        title=f"data and time · {_title(sweep)}" if timed else f"data · {_title(sweep)}",
        headings=headings,
        rows=tuple(tuple(line.values()) for line in lines),
        bad=tuple(bad),
        notes=((_LEVEL[kind.metric].format(level=level), _MEDIANS) if level is not None else ()),
    )
    same = len({line["steps"] for line in lines}) == 1  # then the title has them
    sheet = sheet.without(lambda heading: heading == "steps" and same)
    return sheet.without_empty([h for h in sheet.headings if h not in ("method", "T", "runs")])


def _title(sweep: UnrollSweep) -> str:
    """Return what is trained on what, for how long, without ``T``."""
    record = sweep.records[0]
    cell = {k: v for k, v in part(record, "cell").items() if k != "unroll"}
    if sweep.kind.by_steps:
        return title_of({**record, "cell": cell})
    title, batch = title_of({**record, "cell": cell, "steps": ""}), text(record.get("batch_size"), 12)
    size = number(record, "batch_size") or 0.0
    chars = max(
        size * (number(r, "steps") or 0.0) * (number(part(r, "cell"), "unroll") or 0.0) for r in sweep.records
    )
    return title.replace(f" steps of {batch}", f"{chars:,.0f} characters in batches of {batch}")


def _steps(records: Sequence[Record]) -> str:
    steps = number(records[0], "steps")
    return DASH if steps is None else f"{steps:,.0f}"


def _bad(record: Record) -> bool:
    return record.get("status") != "ok"


def _good(records: Iterable[Record]) -> list[Record]:
    return [r for r in records if not _bad(r)]


def _failures(sweep: UnrollSweep) -> list[str]:
    """Return a line for each reason why runs of a cell did not end well."""
    lines: dict[str, None] = {}
    for row in sweep.rows:
        for unroll in sweep.unrolls:
            for record in filter(_bad, sweep.runs(row, unroll)):
                lines[f"{row}, T={unroll:g}: {status(record)}: {text(record.get('error'), 200)}"] = None
    return list(lines)
