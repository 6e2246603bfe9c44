"""Tables, plots and the report page, made from result records and nothing else."""

from .format import BENCH_HEADINGS, bench_cells, bench_markdown, cells, headings, markdown
from .html import write_report
from .summary import Row, Table, tabulate

__all__ = [
    "BENCH_HEADINGS",
    "Row",
    "Table",
    "bench_cells",
    "bench_markdown",
    "cells",
    "headings",
    "markdown",
    "tabulate",
    "write_report",
]
