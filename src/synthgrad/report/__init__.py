"""Tables, plots and the report page, made from result records and nothing else."""

from . import backend as backend  # before all that imports matplotlib
from .bench import bench_groups, bench_markdown, bench_sheet
from .budgets import budget_sheets, single_tables
from .format import markdown, table_sheet
from .gathered import gathered_sheets
from .grid import grid_sheets
from .html import write_report
from .sheet import Sheet, noted_markdown
from .sparse import sparse_picture, sparse_sheet, sparse_sweeps
from .summary import Row, Table, tabulate
from .svg import standalone

__all__ = [
    "Row",
    "Sheet",
    "Table",
    "bench_groups",
    "bench_markdown",
    "bench_sheet",
    "budget_sheets",
    "gathered_sheets",
    "grid_sheets",
    "markdown",
    "noted_markdown",
    "single_tables",
    "sparse_picture",
    "sparse_sheet",
    "sparse_sweeps",
    "standalone",
    "table_sheet",
    "tabulate",
    "write_report",
]
