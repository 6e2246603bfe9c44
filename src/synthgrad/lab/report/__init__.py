"""Tables, plots and the report page, made from result records and nothing else."""

from . import backend as backend  # before all that imports matplotlib
from .bench import bench_groups, bench_markdown, bench_sheet
from .bench_plots import bench_picture
from .budgets import budget_sheets, single_tables
from .format import markdown, table_sheet
from .gathered import gathered_sheets
from .grid import grid_sheets
from .html import write_report
from .lags import has_lags, lag_picture
from .measure_curves import measure_picture
from .sheet import Sheet, noted_markdown
from .sparse import sparse_picture, sparse_sheet, sparse_sweeps
from .summary import Row, Table, tabulate
from .svg import standalone
from .unroll_plots import OVER, unroll_picture
from .unroll_sheets import unroll_grids, unroll_sheets
from .unrolls import UnrollSweep, unroll_sweeps

__all__ = [
    "OVER",
    "Row",
    "Sheet",
    "Table",
    "UnrollSweep",
    "bench_groups",
    "bench_markdown",
    "bench_picture",
    "bench_sheet",
    "budget_sheets",
    "gathered_sheets",
    "grid_sheets",
    "markdown",
    "measure_picture",
    "noted_markdown",
    "single_tables",
    "has_lags",
    "lag_picture",
    "sparse_picture",
    "sparse_sheet",
    "sparse_sweeps",
    "standalone",
    "table_sheet",
    "tabulate",
    "unroll_grids",
    "unroll_picture",
    "unroll_sheets",
    "unroll_sweeps",
    "write_report",
]
