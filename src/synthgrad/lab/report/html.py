"""The report: one self-contained page, readable without a network, on a phone and in the dark."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from ..names import METHODS, RECURRENT
from ..records import Record, write_whole
from .bench import bench_groups
from .budgets import budget_sheets
from .fields import is_bench, is_recurrent, text
from .grid import grid_sheets
from .labels import position
from .sections import (
    Section,
    bench_section,
    sheet_section,
    sparse_section,
    table_section,
    unroll_section,
)
from .sparse import sparse_sweeps
from .summary import Table, tabulate
from .unrolls import unroll_of, unroll_sweeps

__all__ = ["write_report"]

MOST_TABLES = 40  # that a page shows
MOST_PLOTS = 120  # on a page: each takes time to draw and room
LEAST_PLOTS = 2  # of a table, however many there are
MOST_PROBLEMS = 10


def write_report(path: Path, records: Iterable[Record], problems: Sequence[str] = ()) -> None:
    """Write the report of some records; ``problems`` says what had to be left out of it.

    The file appears whole or not at all.
    """
    environment = Environment(
        loader=PackageLoader("synthgrad.lab.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    records = [r for r in records if isinstance(r, Mapping)]
    sections, left_out = _sections(records)
    page = environment.get_template("report.html.j2").render(
        sections=sections,
        methods=_methods(records),
        problems=_first([*problems, *left_out]),
    )
    write_whole(path, _printable(page))


def _sections(records: Sequence[Record]) -> tuple[list[Section], list[str]]:
    """Return the sections of a page, and a line about those that it has no room for."""
    tables, benches, sweeps = tabulate(records), bench_groups(records), sparse_sweeps(records)
    unrolls = unroll_sweeps(records)
    shown = sum(min(len(found), MOST_TABLES) for found in (tables, benches, unrolls))
    room = max(LEAST_PLOTS, MOST_PLOTS // max(1, shown + len(sweeps)))
    sections = _gathered(records, tables)
    sections += [sparse_section(sweep, k, room) for k, sweep in enumerate(sweeps, 1)]
    sections += [unroll_section(sweep, k, room) for k, sweep in enumerate(unrolls[:MOST_TABLES], 1)]
    sections += [table_section(t, k, room) for k, t in enumerate(tables[:MOST_TABLES], 1)]
    sections += [bench_section(name, group, room) for name, group in list(benches.items())[:MOST_TABLES]]
    gone = len(tables) + len(benches) + len(unrolls) - shown
    return sections, [
        f"{gone} more tables have no room on this page; make one of fewer folders"
    ] if gone else []


def _gathered(records: Sequence[Record], tables: Sequence[Table]) -> list[Section]:
    """Return the tables that gather others: the grid of networks, and the budgets of one network."""
    about = "Every network and data set of these records at a glance; each has a section of its own."
    sections = [sheet_section(f"grid-{k}", about, s) for k, s in enumerate(grid_sheets(records), 1)]
    about = "The same network and data with several numbers of steps; each number has a section of its own."
    return sections + [
        sheet_section(f"budgets-{k}", about, s) for k, s in enumerate(budget_sheets(tables), 1)
    ]


def _first(problems: Sequence[str]) -> list[str]:
    more = len(problems) - MOST_PROBLEMS
    return [*(text(p, 300) for p in problems[:MOST_PROBLEMS]), *([f"… and {more} more"] if more > 0 else [])]


def _methods(records: Iterable[Record]) -> list[tuple[str, str]]:
    """Return the methods of the page that are known, in the order of the tables, with a line about each."""
    records = [r for r in records if not is_bench(r) or r["experiment"] == "bench/step"]
    unrolled = {str(r.get("method")) for r in records if is_recurrent(r) and unroll_of(r) is not None}
    others = {str(r.get("method")) for r in records if not is_recurrent(r) or unroll_of(r) is None}
    found = [(name, about) for name, about in METHODS.items() if name in others]
    for name, about in RECURRENT.items():
        if name in unrolled or (name in others and name not in METHODS):
            # One name may stand for two things, on a page that has both.
            found.append((f"{name}, recurrent" if name in others and name in METHODS else name, about))
    return sorted(found, key=lambda entry: position({"method": entry[0].partition(",")[0]}))


def _printable(page: str) -> str:
    """Replace what no page may hold: control characters, and halves of characters."""
    whole = page.encode("utf-8", "replace").decode("utf-8")
    return whole.translate({c: "\N{REPLACEMENT CHARACTER}" for c in range(32) if chr(c) not in "\n\t"})
