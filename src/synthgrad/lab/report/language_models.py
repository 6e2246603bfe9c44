"""Tables of language models: bits per character of each row, beside the synchronous run with the same optimizer."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from .facets import FACETS, MICROBATCHES, OPTIMIZER, Facet, common_facets, short_label
from .frame import figures, first, good, num_bad, reasons, records_of, where
from .measures import Measure, mean, median, ratio_of, ratio_text, unsteady_steps
from .sheet import Column, Sheet, sheet_of
from .trainings import Table, tables_of
from .words import DASH, unit

__all__ = ["SYNCHRONOUS", "VALIDATION", "language_sheet", "language_tables"]

#: The method in which every module waits for the gradient of its own batch.
SYNCHRONOUS = "backprop"
VALIDATION = Measure("val_bits_per_char", "bits per character, validation", 3)
_TEST = Measure("bits_per_char", "bits per character, test", 3)

_UNLESS = "Unless a row says otherwise"
_DIFFERENCE = (
    "Difference: validation bits per character less those of backprop with the same optimizer, seed by seed."
)
#: What a reader must know where rows have a facet.
_NOTES = {
    "private blocks": "A private block belongs to a head at a cut, which is thrown away after training.",
    "delay": "Delay: how many batches a message takes to cross an interface.",
    "microbatches": "Microbatches: several batches make one update. A step, and a delay of 1, is a microbatch.",
    "versions of weights": "2BW keeps two versions of the weights, PACI one.",
}


def language_tables(frame: pd.DataFrame) -> list[Table]:
    """Return a table for each text, network and number of updates that language models were trained with."""
    return tables_of(frame[frame["kind"] == "language"])


def _having(runs: pd.DataFrame, facet: Facet, value: str) -> pd.DataFrame:
    return where(runs, (facet.value(record) == value for record in records_of(runs)))


def _synchronous(table: Table, runs: pd.DataFrame, *, steps: bool = False) -> pd.DataFrame:
    """Return the runs that a row is held against: backpropagation with the same optimizer; of none none.

    Args:
        table: that the row stands in.
        runs: of the row.
        steps: are steps compared? Then they must be of as many windows. Updates always are, so that without such a run
            the one of undivided updates is as good.
    """
    record = first(runs)
    found = table.runs[table.runs["method"] == SYNCHRONOUS]
    found = _having(found, OPTIMIZER, OPTIMIZER.value(record))
    same = _having(found, MICROBATCHES, MICROBATCHES.value(record))
    return same if len(same) or steps else _having(found, MICROBATCHES, "")


def language_sheet(table: Table) -> Sheet:
    """Return a table of language models as text."""
    rows = table.rows()
    common = common_facets([first(runs) for runs in rows])

    def name(runs: pd.DataFrame) -> str:
        return short_label(first(runs), common)

    return sheet_of(
        table.title,
        [
            Column("method", name, key=True),
            *(_common_column(facet, common[facet.name]) for facet in FACETS if facet.name in common),
            *_measured(table),
        ],
        rows,
        is_bad=lambda runs: num_bad(runs) > 0,
        failures=[f"{name(r)}: {'; '.join(sorted(reasons(r, 400))[:10])}" for r in rows if num_bad(r)],
        notes=_notes(rows),
    )


def _common_column(facet: Facet, value: str) -> Column[pd.DataFrame]:
    """Return a column for what the names of rows leave out, which the caption says for all of them."""

    def cell(runs: pd.DataFrame) -> str:
        return value if facet.value(first(runs)) == value else DASH

    return Column(facet.name, cell, key=True, partly=_UNLESS)


def _measured(table: Table) -> list[Column[pd.DataFrame]]:
    timed = table.timed

    def step(runs: pd.DataFrame) -> str:
        return unit("step_ms", median(figures(good(runs), "time.step_ms_median"))) if timed else DASH

    def ratio(runs: pd.DataFrame) -> str:
        own, theirs = good(runs), good(_synchronous(table, runs, steps=True))
        unsteady = runs["method"].iloc[0] != SYNCHRONOUS and unsteady_steps(own, theirs)
        return ratio_text(ratio_of(own, theirs) if timed else None, unsteady=unsteady)

    def tokens(runs: pd.DataFrame) -> str:
        return unit("", median(figures(good(runs), "metrics.tokens_seen")))

    def count(runs: pd.DataFrame) -> str:
        return f"{len(good(runs))}" + (f", {num_bad(runs)} not ok" if num_bad(runs) else "")

    return [
        Column(VALIDATION.heading, VALIDATION.show),
        Column("difference to backprop", lambda runs: _difference(runs, _synchronous(table, runs))),
        Column(_TEST.heading, _TEST.show, optional=True),
        Column("tokens", tokens, optional=True),
        Column("step", step, timed=True, optional=True),
        Column("ratio to backprop", ratio, timed=True, optional=True),
        Column("runs", count),
    ]


def _difference(runs: pd.DataFrame, reference: pd.DataFrame) -> str:
    """Return mean ± half the distance between best and worst of the differences of each seed that both have."""
    if runs["method"].iloc[0] == SYNCHRONOUS:
        return DASH
    column = f"metrics.{VALIDATION.metric}"
    own, theirs = (
        good(part).drop_duplicates("seed").set_index("seed")[column]
        if column in part
        else pd.Series(dtype=float)
        for part in (runs, reference)
    )
    found = [float(value) for value in (own - theirs).dropna()]
    middle = mean(found)
    if middle is None:
        return DASH
    spread = f" ± {(max(found) - min(found)) / 2:.3f}" if len(found) > 1 else ""
    return f"{middle:+.3f}{spread}".replace("-", "−")


def _notes(rows: Sequence[pd.DataFrame]) -> tuple[str, ...]:
    methods = {method for runs in rows for method in runs["method"]}
    notes = [_DIFFERENCE] if SYNCHRONOUS in methods and len(methods) > 1 else []
    said = {facet.name for facet in FACETS for runs in rows if facet.value(first(runs))}
    return (*notes, *(note for name, note in _NOTES.items() if name in said))
