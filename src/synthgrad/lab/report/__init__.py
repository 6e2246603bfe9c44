"""Tables, plots and the report page, made from result records and nothing else.

Records may be typed, or objects of lines. What draws and what groups is loaded when the first table or page is made:
help, lists and completion do not wait for it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .sheet import Sheet, markdown

__all__ = [
    "Sheet",
    "bench_sheets",
    "gathered_sheets",
    "is_unsteady",
    "markdown",
    "training_sheets",
    "write_report",
]

Lines = Iterable[Mapping[str, Any]]


def write_report(path: Path, records: Lines, problems: Sequence[str] = ()) -> None:
    """Write the page of some records: see `page.write_report`."""
    from .page import write_report as write

    write(path, records, problems)


def training_sheets(records: Lines) -> list[Sheet]:
    """Return a table for each setting and number of steps that was trained."""
    from .tables import training_sheets as make

    return make(records)


def gathered_sheets(records: Lines) -> list[Sheet]:
    """Return the tables that gather runs: sweeps over update probabilities and unrolls, budgets, grids of networks."""
    from .tables import gathered_sheets as make

    return make(records)


def bench_sheets(records: Lines) -> list[Sheet]:
    """Return a table for each benchmark."""
    from .tables import bench_sheets as make

    return make(records)


def is_unsteady(ratio: float | None, low: float | None, high: float | None) -> bool:
    """May another measurement of a ratio come out otherwise, by its 10 % and 90 % points: see `measures`."""
    from .measures import is_unsteady as wide

    return wide(ratio, low, high)
