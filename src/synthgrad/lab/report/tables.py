"""Every table of some records, in the order in which the terminal, the page and the documents show them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from ..records import Record
from .benches import bench_groups, bench_sheet
from .frame import checked, frame_of
from .grids import grid_sheets, sparse_sheet, sparse_sweeps
from .language_models import language_sheet, language_tables
from .sheet import Sheet
from .trainings import Table, budget_groups, budget_sheet, table_sheet, tables_of
from .unrolls import cost_sheet, reached_sheet, unroll_sweeps, without_sweeps

__all__ = [
    "bench_sheets",
    "document_sheets",
    "gathered_sheets",
    "grids_of",
    "single_tables",
    "training_sheets",
]

_Lines = Iterable[Mapping[str, Any]]


def _frame(records: _Lines) -> pd.DataFrame:
    return frame_of(checked(records)[0])


def single_tables(frame: pd.DataFrame) -> list[Table]:
    """Return the tables of trainings that no sweep gathers, without those of language models."""
    runs = without_sweeps(frame)
    return tables_of(runs[runs["kind"].isin(["training", "recurrent"])])


def training_sheets(records: _Lines) -> list[Sheet]:
    """Return a table for each setting and number of steps that was trained."""
    frame = _frame(records)
    return [*map(table_sheet, single_tables(frame)), *map(language_sheet, language_tables(frame))]


def gathered_sheets(records: _Lines) -> list[Sheet]:
    """Return the tables that gather runs: sweeps over update probabilities and unrolls, budgets, grids of networks."""
    frame = _frame(records)
    budgets = [budget_sheet(group) for group in budget_groups(single_tables(frame))]
    return [*_sweep_sheets(frame, times=True), *budgets, *grid_sheets(frame)]


def bench_sheets(records: _Lines) -> list[Sheet]:
    """Return a table for each benchmark."""
    return [bench_sheet(name, lines) for name, lines in bench_groups(checked(records)[0]).items()]


def _sweep_sheets(frame: pd.DataFrame, *, times: bool) -> list[Sheet]:
    sheets = [sparse_sheet(sweep) for sweep in sparse_sweeps(frame)]
    return sheets + [
        s for sweep in unroll_sweeps(frame) for s in (reached_sheet(sweep), cost_sheet(sweep, times=times))
    ]


def document_sheets(records: Sequence[Record], *, times: bool = True) -> list[Sheet]:
    """Return the tables of a results folder for a document: what gathers runs in place of the tables that it gathers.

    Args:
        records: of the folder.
        times: are columns of times shown? They mean nothing of runs that shared their machine.
    """
    frame = frame_of(records)
    tables = single_tables(frame)
    budgets = budget_groups(tables)
    held = {id(table) for group in budgets for table in group}
    sheets = [budget_sheet(group, times=times) for group in budgets]
    sheets += [table_sheet(table) for table in tables if id(table) not in held]
    sheets += map(language_sheet, language_tables(frame))
    if not times:
        sheets = [sheet.without(lambda column: column.timed) for sheet in sheets]
    return [*_sweep_sheets(frame, times=times), *sheets, *bench_sheets(records)]


def grids_of(records: Sequence[Record]) -> list[Sheet]:
    """Return the grids of some folders: of networks and methods, and of methods and lengths of unrolls."""
    frame = frame_of(records)
    return [*grid_sheets(frame, least=1), *(reached_sheet(sweep) for sweep in unroll_sweeps(frame, least=1))]
