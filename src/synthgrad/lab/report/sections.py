"""The sections of the page: each its own table, notes, plots and pictures, kept apart if one cannot be drawn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

from ..records import Record
from .about import about_recurrent
from .bench import ABOUT, bench_sheet
from .bench_plots import bench_plots
from .curves import curve_groups
from .fields import key, part, text
from .format import table_sheet
from .graph import graph_of
from .graph_svg import graph_svg
from .labels import row_label
from .lags import has_lags, lag_group
from .machine import differences, machine_line, settings
from .measure_curves import measure_groups
from .plots import Group
from .quality import quality_group, unroll_quality
from .sheet import Sheet
from .sparse import Sweep, sparse_group, sparse_sheet
from .summary import Table
from .unroll_plots import unroll_groups
from .unroll_sheets import unroll_costs, unroll_grid
from .unrolls import UnrollSweep

__all__ = [
    "Drawn",
    "Section",
    "bench_section",
    "sheet_section",
    "sparse_section",
    "table_section",
    "unroll_section",
]

MOST_ROWS = 200  # of a table that the page shows
MOST_PICTURES = 6  # of graphs, for each table
MOST_LINES = 20  # of failures or of notes

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Drawn:
    """Figures under a heading: titles with SVG text."""

    heading: str
    figures: list[tuple[str, str]]
    note: str = ""


@dataclass(frozen=True, slots=True)
class Picture:
    """A graph as SVG text, empty if it has too many modules; ``wide`` ones need the width of the page."""

    title: str
    svg: str
    wide: bool


@dataclass(slots=True)
class Section:
    """What the page shows of one table.

    Attributes:
        anchor: name to link to.
        about: what is measured; empty where the page's head says it.
        sheet: the table.
        more: what of the table is not shown; empty if all is.
        second: another table of the same runs, if there is one.
        pictures: of graphs.
        groups: of plots.
        machine: processor and versions, in a line.
        warnings: what speaks against comparing the runs, and what could not be drawn.
        settings: names and values.
    """

    anchor: str
    about: str
    sheet: Sheet
    more: str = ""
    second: Sheet | None = None
    pictures: list[Picture] = field(default_factory=list[Picture])
    groups: list[Drawn] = field(default_factory=list[Drawn])
    machine: str = ""
    warnings: list[str] = field(default_factory=list[str])
    settings: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])

    def attempt(self, what: str, make: Callable[[], T], otherwise: T) -> T:
        """Return what is made; if that fails, say so in a warning and go on without it.

        A page is made of whatever records there are. One of them that nobody foresaw must not cost the others
        their place.
        """
        try:
            return make()
        except Exception as error:
            reason = text(str(error), 120)
            self.warnings.append(f"{what} could not be made: {type(error).__name__}: {reason}")
            return otherwise


def table_section(table: Table, number: int, num_plots: int) -> Section:
    """Return the section of a table of trainings.

    Args:
        table: the runs.
        number: tells the section from the others of the page.
        num_plots: how many plots it may have.
    """
    section = Section(
        f"table-{number}", about_recurrent(table.records) if table.recurrent else "", _empty(table.title)
    )
    section.sheet = section.attempt("The table", lambda: table_sheet(table), section.sheet)
    salt = f"t{number}"

    def groups() -> list[Group]:
        quality = quality_group(table, salt)
        curves = measure_groups if table.recurrent else curve_groups
        first = [lag_group(table.records, f"{salt}-lag")] if has_lags(table.records) else []
        return [*first, *curves(table, salt), *([quality] if quality else [])]

    _finish(section, table.records, groups, num_plots)
    section.pictures = section.attempt("The pictures of the graphs", lambda: _pictures(table.records), [])
    if not table.timed:
        section.warnings.insert(0, _UNTIMED)
    return section


def bench_section(name: str, records: Sequence[Record], num_plots: int) -> Section:
    """Return the section of a benchmark.

    Args:
        name: of the benchmark, without ``bench/``.
        records: its lines.
        num_plots: how many plots it may have.
    """
    anchor = "bench-" + "".join(c if c.isalnum() and c.isascii() else "-" for c in name)
    section = Section(anchor, ABOUT.get(name, ""), _empty(f"bench/{name}"))
    section.sheet = section.attempt("The table", lambda: bench_sheet(name, records), section.sheet)
    _finish(section, records, lambda: bench_plots(name, records), num_plots)
    return section


def sheet_section(anchor: str, about: str, sheet: Sheet) -> Section:
    """Return the section of a table that gathers what others show one by one; they name machine and settings.

    Args:
        anchor: name to link to.
        about: what is gathered.
        sheet: the table.
    """
    return Section(anchor, about, *_shortened(sheet))


def sparse_section(sweep: Sweep, number: int, num_plots: int) -> Section:
    """Return the section of a sweep over update probabilities.

    Args:
        sweep: the runs.
        number: tells the section from the others of the page.
        num_plots: how many plots it may have.
    """
    salt = f"sparse-{number}"
    section = Section(salt, "How often a module needs to update.", _empty("sparse"))
    section.sheet = section.attempt("The table", lambda: sparse_sheet(sweep), section.sheet)
    _finish(section, sweep.records, lambda: [sparse_group(sweep, salt)], num_plots)
    return section


def unroll_section(sweep: UnrollSweep, number: int, num_plots: int) -> Section:
    """Return the section of recurrent runs over the length of their unrolls.

    Args:
        sweep: the runs.
        number: tells the section from the others of the page.
        num_plots: how many plots it may have.
    """
    salt = f"unrolls-{number}"
    section = Section(salt, about_recurrent(sweep.records), _empty("unrolls"))
    section.sheet = section.attempt("The table", lambda: unroll_grid(sweep), section.sheet)
    section.second = section.attempt("The second table", lambda: unroll_costs(sweep), None)

    def groups() -> list[Group]:
        quality = unroll_quality(sweep, salt)
        return [*unroll_groups(sweep, salt), *([quality] if quality else [])]

    _finish(section, [_without_intervals(r) for r in sweep.records], groups, num_plots)
    if not sweep.timed:
        section.warnings.insert(0, _UNTIMED)
    return section


def _without_intervals(record: Record) -> Record:
    """Return a record without how often it was evaluated, which follows from the length of its unrolls."""
    return {**record, "config": {k: v for k, v in part(record, "config").items() if k != "eval_every"}}


_UNTIMED = "The runs had different threads or numbers of runs side by side: their times are not compared."


def _empty(title: str) -> Sheet:
    return Sheet(title, (), (), ())


def _finish(
    section: Section, records: Sequence[Record], groups: Callable[[], list[Group]], num_plots: int
) -> None:
    """Shorten the table, draw the plots and name machine and settings."""
    section.sheet, section.more = _shortened(section.sheet)
    if section.second is not None:
        section.second = _shortened(section.second)[0]
    section.groups = _drawn(section, section.attempt("The plots", groups, []), num_plots)
    section.machine = section.attempt("The line about the machine", lambda: machine_line(records), "")
    section.settings = section.attempt("The settings", lambda: settings(records), [])
    section.warnings += _first(section.attempt("The settings' differences", lambda: differences(records), []))


def _shortened(sheet: Sheet) -> tuple[Sheet, str]:
    """Return what the page shows of a table, and a line about the rest; empty if there is none."""
    gone = len(sheet.rows) - MOST_ROWS
    shown = replace(
        sheet,
        rows=sheet.rows[:MOST_ROWS],
        bad=sheet.bad[:MOST_ROWS],
        failures=_first(sheet.failures),
        notes=_first(sheet.notes),
    )
    return shown, f"… and {gone} more rows, which the records hold." if gone > 0 else ""


def _first(lines: Sequence[str]) -> tuple[str, ...]:
    more = [f"… and {len(lines) - MOST_LINES} more"] if len(lines) > MOST_LINES else []
    return (*lines[:MOST_LINES], *more)


def _drawn(section: Section, groups: Sequence[Group], num_plots: int) -> list[Drawn]:
    """Draw the plots that there is room for, those of the lowest rank first."""
    ranked = sorted((plot.rank, g, k) for g, group in enumerate(groups) for k, plot in enumerate(group.plots))
    kept = {(g, k) for _, g, k in ranked[: max(0, num_plots)]}
    found: list[Drawn] = []
    for g, group in enumerate(groups):
        figures = [
            (plot.title, section.attempt(f"The plot “{plot.title}”", plot.draw, ""))
            for k, plot in enumerate(group.plots)
            if (g, k) in kept
        ]
        if figures := [(title, svg) for title, svg in figures if svg]:
            found.append(Drawn(group.heading, figures, group.note))
    if gone := len(ranked) - len(kept):
        section.warnings.append(f"{gone} plots have no room on this page; make a page of fewer folders.")
    return found


def _pictures(records: Sequence[Record]) -> list[Picture]:
    """Return a picture for each graph that differs, under the names of the rows that share it."""
    rows: dict[str, dict[str, None]] = {}
    first: dict[str, Record] = {}
    for record in records:
        if record.get("graph"):
            same = key(record["graph"])
            first.setdefault(same, record)
            rows.setdefault(same, {})[row_label(record)] = None
    found: list[Picture] = []
    for same, record in list(first.items())[:MOST_PICTURES]:
        graph = graph_of(record)
        if graph is not None:
            svg, wide = graph_svg(graph)
            title = text(list(rows[same]), 120)
            title += "" if svg else f": {len(graph.modules)} modules, too many to draw"
            found.append(Picture(title, svg, wide))
    return found
