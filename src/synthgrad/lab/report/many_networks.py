"""Errors of many networks after given numbers of steps, read from the curves of their runs."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from ..records import Record
from .frame import first, good, groups, num_bad
from .labels import network_words
from .sheet import Column, Sheet, sheet_of
from .trainings import Table
from .words import DASH, mean_and_spread

__all__ = ["many_networks_sheet"]


def many_networks_sheet(tables: Sequence[Table], steps: Sequence[int]) -> Sheet:
    """Return a table of all networks.

    After one number of steps, it has a row for each network and a column for each method; after several, a row for
    each network and method, and a column for each number.

    Args:
        tables: of trainings of one experiment, one for each network; at least one.
        steps: after which the error is shown; of a run that was not evaluated there, there is none.
    """
    record = tables[0].record
    measured = "validation error" if tables[0].part == "val" else "test error"
    title = f"{record.experiment} · {record.tier} · {record.cell.data} · batches of {record.batch_size}"
    if len(steps) == 1:
        title += f" · {measured} after {steps[0]:,} steps"
        return _by_method(tables, steps[0], title)
    return _by_step(tables, steps, f"{title} · {measured} over steps")


def _by_method(tables: Sequence[Table], step: int, title: str) -> Sheet:
    labels = list(dict.fromkeys(label for table in tables for label in table.runs["label"]))
    columns: list[Column[pd.DataFrame]] = [
        _network_column(),
        *(
            Column(label, lambda runs, label=label: _error(runs[runs["label"] == label], step))
            for label in labels
        ),
    ]
    return _sheet(title, columns, [table.runs for table in tables])


def _by_step(tables: Sequence[Table], steps: Sequence[int], title: str) -> Sheet:
    columns: list[Column[pd.DataFrame]] = [
        _network_column(),
        Column("method", lambda runs: runs["label"].iloc[0], key=True),
        *(Column(f"{step:,}", lambda runs, step=step: _error(runs, step)) for step in steps),
    ]
    return _sheet(title, columns, [own for table in tables for _, own in groups(table.runs, "label")])


def _network_column() -> Column[pd.DataFrame]:
    return Column("network", lambda runs: _network(first(runs)), key=True)


def _network(record: Record) -> str:
    return f"{network_words(record, always=True)}, lr {record.config.lr or 0.0:g}"


def _sheet(title: str, columns: Sequence[Column[pd.DataFrame]], rows: Sequence[pd.DataFrame]) -> Sheet:
    return sheet_of(title, columns, rows, is_bad=lambda runs: num_bad(runs) > 0, failures=[])


def _error(runs: pd.DataFrame, step: int) -> str:
    """Return the mean error of some runs after a number of steps, and how far they are apart."""
    found = [error for record in good(runs)["record"] if (error := _error_at(record, step)) is not None]
    return mean_and_spread(found, 2, " %") if found else DASH


def _error_at(record: Record, step: int) -> float | None:
    part = "val" if record.config.hold_out else "test"
    return next((p.number(f"{part}_error_pct") for p in record.curve if p.step == step), None)
