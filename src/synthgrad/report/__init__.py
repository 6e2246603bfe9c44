"""Tables, plots and the report page, made from result records and nothing else."""

from . import backend as backend  # before all that imports matplotlib
from .bench import bench_groups, bench_markdown, bench_sheet
from .format import markdown, table_sheet
from .html import write_report
from .sheet import Sheet
from .summary import Row, Table, tabulate

__all__ = [
    "Row",
    "Sheet",
    "Table",
    "bench_groups",
    "bench_markdown",
    "bench_sheet",
    "markdown",
    "table_sheet",
    "tabulate",
    "write_report",
]
