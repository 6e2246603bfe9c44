"""Tables of language models: bits per character of each row, beside the synchronous run with the same optimizer.

Every row may have a learning rate of its own, which stands in a column. Where a row was trained with several, they
stand together, and the best is marked.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import pandas as pd

from ..records import Record
from .facets import FACETS, MICROBATCHES, OPTIMIZER, RATE, WEIGHT, Facet, common_facets, row_names
from .frame import figures, first, good, num_bad, reasons, records_of, where
from .labels import row_label
from .measures import Measure, mean, median, ratio_of, ratio_text, unsteady_steps
from .rates import VALIDATION, at_best_rates, best_rates, searched
from .sheet import Column, Sheet, sheet_of
from .trainings import Table, tables_of
from .words import DASH, TEXTS, unit

__all__ = ["DIFFERENCE", "LOWEST", "SYNCHRONOUS", "difference_text", "differences_to", "language_sheet"]
__all__ += ["language_tables", "late_values", "naming_columns", "reference_of"]

#: The method in which every module waits for the gradient of its own batch.
SYNCHRONOUS = "backprop"
_TEST = Measure("bits_per_char", "bits per character, test", 3)
#: Heading of the column of differences in validation bits.
DIFFERENCE = "difference to backprop, validation"
#: Stands beside the bits of the best of several rates.
LOWEST = "← lowest"

_UNLESS = "Unless a row says otherwise"


def language_tables(frame: pd.DataFrame) -> list[Table]:
    """Return a table for each text, network and number of updates that language models were trained with."""
    return tables_of(frame[frame["kind"] == "language"])


def _rows(table: Table) -> list[pd.DataFrame]:
    """Return the runs of each row; those that differ in their rates alone stand together, the lowest rate first."""
    found: dict[str, list[pd.DataFrame]] = {}
    for runs in table.rows():
        found.setdefault(row_label(first(runs)), []).append(runs)
    return [runs for same in found.values() for runs in sorted(same, key=lambda r: first(r).config.lr or 0.0)]


def naming_columns(
    rows: Sequence[pd.DataFrame], *, but: Collection[Facet] = ()
) -> list[Column[pd.DataFrame]]:
    """Return the columns that say what each row is: its name, its learning rate, and what all names leave out.

    Args:
        rows: the runs of each.
        but: facets that names do not say, because they have a column.
    """
    records = [first(runs) for runs in rows]
    common = common_facets(records, but=but)
    labels = [runs["label"].iloc[0] for runs in rows]
    names = dict(zip(labels, row_names(records, common, but=but), strict=True))
    shared = [facet for facet in FACETS if facet.name in common and facet not in but]
    return [
        Column("method", lambda runs: names[runs["label"].iloc[0]], key=True),
        Column(RATE.name, lambda runs: RATE.value(first(runs)) or DASH, key=True, optional=True),
        *(_common_column(facet, common[facet.name]) for facet in shared),
    ]


def _having(runs: pd.DataFrame, facet: Facet, value: str) -> pd.DataFrame:
    return where(runs, (facet.value(record) == value for record in records_of(runs)))


def reference_of(table: Table, runs: pd.DataFrame, *, steps: bool = False) -> pd.DataFrame:
    """Return the runs that a row is held against: backpropagation with the same optimizer, at its best rate.

    Args:
        table: that the row stands in.
        runs: of the row.
        steps: are steps compared? Then they must be of as many windows. Updates always are, so that without such a run
            the one of undivided updates is as good.

    Returns:
        The runs; none if there is no such row.
    """
    record = first(runs)
    found = table.runs[table.runs["method"] == SYNCHRONOUS]
    found = _having(found, OPTIMIZER, OPTIMIZER.value(record))
    same = _having(found, MICROBATCHES, MICROBATCHES.value(record))
    return at_best_rates(same if len(same) or steps else _having(found, MICROBATCHES, ""))


def late_values(record: Record, measure: str) -> dict[str, float]:
    """Return the mean of a measure of quality at each interface over the last third of the curve."""
    found: dict[str, list[float]] = {}
    for point in record.curve[-max(1, len(record.curve) // 3) :]:
        for interface, measured in point.quality.items():
            if (value := measured.get(measure)) is not None:
                found.setdefault(interface, []).append(value)
    return {name: sum(values) / len(values) for name, values in found.items()}


def language_sheet(table: Table) -> Sheet:
    """Return a table of language models as text."""
    rows = _rows(table)
    naming = naming_columns(rows)
    name = naming[0].cell
    return sheet_of(
        table.title,
        [*naming, *_measured(table)],
        rows,
        is_bad=lambda runs: num_bad(runs) > 0,
        failures=[f"{name(r)}: {'; '.join(sorted(reasons(r, 400))[:10])}" for r in rows if num_bad(r)],
        notes=_notes(table, rows),
    )


def _common_column(facet: Facet, value: str) -> Column[pd.DataFrame]:
    """Return a column for what the names of rows leave out, which the caption says for all of them."""

    def cell(runs: pd.DataFrame) -> str:
        return value if facet.value(first(runs)) == value else DASH

    return Column(facet.name, cell, key=True, partly=_UNLESS)


def _measured(table: Table) -> list[Column[pd.DataFrame]]:
    timed, several, best = table.timed, searched(table.runs), best_rates(table.runs)

    def bits(runs: pd.DataFrame) -> str:
        row, said = row_label(first(runs)), VALIDATION.show(runs)
        is_best = row in several and said != DASH and best[row] == RATE.value(first(runs))
        return f"{said} {LOWEST}" if is_best else said

    def difference(measure: Measure) -> Callable[[pd.DataFrame], str]:
        return lambda runs: difference_text(measure, runs, reference_of(table, runs))

    def step(runs: pd.DataFrame) -> str:
        return unit("step_ms", median(figures(good(runs), "time.step_ms_median"))) if timed else DASH

    def ratio(runs: pd.DataFrame) -> str:
        own, theirs = good(runs), good(reference_of(table, runs, steps=True))
        unsteady = runs["method"].iloc[0] != SYNCHRONOUS and unsteady_steps(own, theirs)
        return ratio_text(ratio_of(own, theirs) if timed else None, unsteady=unsteady)

    def tokens(runs: pd.DataFrame) -> str:
        return unit("", median(figures(good(runs), "metrics.tokens_seen")))

    def count(runs: pd.DataFrame) -> str:
        return f"{len(good(runs))}" + (f", {num_bad(runs)} not ok" if num_bad(runs) else "")

    return [
        Column(VALIDATION.heading, bits),
        Column(DIFFERENCE, difference(VALIDATION)),
        Column(_TEST.heading, _TEST.show, optional=True),
        Column("difference to backprop, test", difference(_TEST), optional=True),
        Column("tokens", tokens, late=True, optional=True),
        Column("step", step, late=True, timed=True, optional=True),
        Column("ratio to backprop", ratio, late=True, timed=True, optional=True),
        Column("runs", count),
    ]


def differences_to(
    measure: Measure, runs: pd.DataFrame, reference: pd.DataFrame
) -> list[tuple[float, float]]:
    """Return the differences of each seed that both have, in bits and in per cent of the reference's bits."""
    column = f"metrics.{measure.metric}"
    own, theirs = (
        good(part).drop_duplicates("seed").set_index("seed")[column]
        if column in part
        else pd.Series(dtype=float)
        for part in (runs, reference)
    )
    both = pd.DataFrame({"own": own, "theirs": theirs}).dropna()
    both = both[both["theirs"] > 0]
    return [(a - b, 100 * (a - b) / b) for a, b in zip(both["own"], both["theirs"], strict=True)]


def difference_text(measure: Measure, runs: pd.DataFrame, reference: pd.DataFrame) -> str:
    """Return mean ± half the distance between best and worst of the differences, and the mean in per cent.

    Args:
        measure: of the bits that differ.
        runs: of a row; backpropagation has no difference.
        reference: the runs that it is held against.
    """
    found = [] if runs["method"].iloc[0] == SYNCHRONOUS else differences_to(measure, runs, reference)
    bits, share = [pair[0] for pair in found], mean([pair[1] for pair in found])
    middle = mean(bits)
    if middle is None or share is None:
        return DASH
    spread = f" ± {(max(bits) - min(bits)) / 2:.3f}" if len(bits) > 1 else ""
    return f"{middle:+.3f}{spread} ({share:+.2f} %)".replace("-", "−")


def _notes(table: Table, rows: Sequence[pd.DataFrame]) -> tuple[str, ...]:
    said = TEXTS["language"]
    methods = {method for runs in rows for method in runs["method"]}
    compared = SYNCHRONOUS in methods and len(methods) > 1
    several = searched(table.runs)
    of_reference = any(row_label(first(r)) in several for r in rows if r["method"].iloc[0] == SYNCHRONOUS)
    notes = [said["difference"]] if compared else []
    notes += [said["best_reference"]] if compared and of_reference else []
    notes += [said["searched"]] if several else []
    records = [first(runs) for runs in rows]
    named = {facet.name for facet in FACETS for record in records if facet.value(record)}
    named |= {WEIGHT.words(WEIGHT.value(record)) for record in records}
    return (*notes, *(TEXTS["facets"][name] for name in TEXTS["facets"] if name in named))
