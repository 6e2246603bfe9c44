"""Every table that gathers runs which other tables show one by one, or that no other table shows."""

from __future__ import annotations

from collections.abc import Sequence

from ..records import Record
from .budgets import budget_sheets
from .grid import grid_sheets
from .sheet import Sheet
from .sparse import sparse_sheet, sparse_sweeps
from .summary import Table
from .unroll_sheets import unroll_sheets

__all__ = ["gathered_sheets"]


def gathered_sheets(records: Sequence[Record], tables: Sequence[Table]) -> list[Sheet]:
    """Return the sweeps over update probabilities and lengths of unrolls, budgets, and the grid of networks.

    Args:
        records: of any experiments.
        tables: what `tabulate` made of them.
    """
    sweeps = [sparse_sheet(sweep) for sweep in sparse_sweeps(records)]
    return [*sweeps, *unroll_sheets(records), *budget_sheets(tables), *grid_sheets(records)]
