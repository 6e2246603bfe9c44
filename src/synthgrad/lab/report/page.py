"""The report page: one file that needs nothing else, with a section for each table."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined

from ..names import METHODS, RECURRENT
from ..records import Record, write_whole
from .agreement import agreement_sheets
from .bench_plots import bench_plot_groups
from .benches import bench_groups, bench_sheet
from .corrections import correction_sheets
from .frame import checked, frame_of, records_of
from .graph import Chain, chain_of
from .grids import grid_sheets, sparse_sheet, sparse_sweeps
from .labels import is_bench, is_recurrent, position, row_label
from .language_models import language_sheet, language_tables
from .language_plots import language_groups
from .machine import differences, machine_line, settings
from .plot import Group, draw
from .plots import sparse_group, sweep_groups, table_groups
from .sheet import Sheet
from .tables import single_tables
from .trainings import Table, budget_groups, budget_sheet, table_sheet
from .unrolls import cost_sheet, reached_sheet, unroll_sweeps
from .words import TEXTS, key, text

__all__ = ["write_report"]

MOST_TABLES = 40  # that a page shows
MOST_PLOTS, LEAST_PLOTS = 120, 2  # on a page, and of a table however many there are: each takes time and room
MOST_ROWS = 200  # of a table
MOST_PICTURES, MOST_LINES, MOST_PROBLEMS = 6, 20, 10  # of graphs for each table, of failures or of notes

_GATHERED = {
    "grid": "Every network and data set of these records at a glance; each has a section of its own.",
    "budgets": "The same network and data with several numbers of steps; each number has a section of its own.",
}
_EXPECTED = ("eval_every",)  # differs in a sweep, because the numbers of steps do
_UPDATES = (
    *_EXPECTED,
    "optimizer",
    "lr",
    "error_feedback",
    "accumulate",
    "versions",
    "lr_warm_up",
)  # in rows' names
_UNTIMED = "The runs had different threads or numbers of runs side by side: their times are not compared."
_GENERAL = (
    "Errors are means over the seeds, ± half the distance between the best and the worst of several. A step is one batch, "
    "with data loading, without evaluations. A method that skips updates does less work in a step: what it gains is stated "
    "as skipped, not as speed."
)
_LANGUAGE = (
    "A GPT predicts every next token of a text. Bits per character are means over the seeds, ± half the distance between "
    "the best and the worst of several; the validation text is measured as training goes, the test text at its end. A "
    "step is one batch, with its data, without evaluations."
)

T = TypeVar("T")


@dataclass(slots=True)
class Section:
    """What the page shows of one table.

    Attributes:
        anchor: name to link to.
        title: of the table.
        about: what is measured.
        sheets: makes the tables: the main one, and others of the same runs.
        records: what they are made of; empty for what gathers other sections.
        groups: makes the descriptions of the plots.
        warnings: what speaks against comparing the runs, and what could not be made.
        expected: settings that may differ without a word.
    """

    anchor: str
    title: str
    about: str
    sheets: Callable[[], Sequence[Sheet]]
    records: Sequence[Record] = ()
    groups: Callable[[], Sequence[Group]] = list
    warnings: list[str] = field(default_factory=list[str])
    expected: tuple[str, ...] = ()

    def attempt(self, what: str, make: Callable[[], T], otherwise: T) -> T:
        """Return what is made; if that fails, say so in a warning and go on without it.

        A page is made of whatever records there are. One of them that nobody foresaw must not cost the others
        their place.
        """
        try:
            return make()
        except Exception as error:
            self.warnings.append(f"{what} could not be made: {type(error).__name__}: {text(str(error), 120)}")
            return otherwise


def write_report(path: Path, records: Iterable[Mapping[str, Any]], problems: Sequence[str] = ()) -> None:
    """Write the report of some records; the file appears whole or not at all.

    Args:
        path: of the page.
        records: typed, or objects of lines; those that are none are named and left out.
        problems: what else had to be left out of it.

    Raises:
        OSError: if it cannot be written.
    """
    found, damaged = checked(records)
    sections, left_out = _sections(frame_of(found))
    room = max(LEAST_PLOTS, MOST_PLOTS // max(1, sum(bool(s.records) for s in sections)))
    environment = Environment(
        loader=PackageLoader("synthgrad.lab.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    page = environment.get_template("report.html.j2").render(
        sections=[_shown(section, room) for section in sections],
        methods=_methods(found),
        problems=_first([text(p, 300) for p in (*problems, *damaged, *left_out)], MOST_PROBLEMS),
    )
    write_whole(path, _printable(page))


def _sections(frame: pd.DataFrame) -> tuple[list[Section], list[str]]:
    """Return the sections of a page, and a line about those that it has no room for."""
    tables, sweeps, languages = single_tables(frame), unroll_sweeps(frame), language_tables(frame)
    benches = bench_groups(records_of(frame))
    gathered = {
        "grid": grid_sheets(frame),
        "budgets": [budget_sheet(group) for group in budget_groups(tables)],
    }
    sections = [
        Section(f"{kind}-{k}", sheet.title, _GATHERED[kind], lambda sheet=sheet: [sheet])
        for kind, sheets in gathered.items()
        for k, sheet in enumerate(sheets, 1)
    ]
    for k, sweep in enumerate(sparse_sweeps(frame), 1):
        about = "How often a module needs to update."
        sections.append(
            Section(
                *(
                    f"sparse-{k}",
                    sparse_sheet(sweep).title,
                    about,
                    lambda s=sweep: [sparse_sheet(s)],
                    sweep.records,
                ),
                groups=lambda s=sweep: [sparse_group(s)],
                expected=_EXPECTED,
            )
        )
    for k, sweep in enumerate(sweeps[:MOST_TABLES], 1):
        sections.append(
            Section(
                *(f"unrolls-{k}", reached_sheet(sweep).title, _about(sweep.records)),
                *(
                    lambda s=sweep: [reached_sheet(s), cost_sheet(s)],
                    sweep.records,
                    lambda s=sweep: sweep_groups(s),
                ),
                warnings=[] if sweep.timed else [_UNTIMED],
                expected=_EXPECTED,
            )
        )
    sections += [_table_section(k, table) for k, table in enumerate(tables[:MOST_TABLES], 1)]
    sections += [_language_section(k, table) for k, table in enumerate(languages[:MOST_TABLES], 1)]
    for name, lines in list(benches.items())[:MOST_TABLES]:
        anchor = "bench-" + "".join(c if c.isalnum() and c.isascii() else "-" for c in name)
        sections.append(
            Section(
                *(
                    anchor,
                    f"bench/{name}",
                    TEXTS["benchmarks"].get(name.partition(" of ")[0], ""),
                    lambda n=name, r=lines: [bench_sheet(n, r)],
                    lines,
                ),
                groups=lambda n=name, r=lines: bench_plot_groups(n, r),
            )
        )
    gone = sum(max(0, len(found) - MOST_TABLES) for found in (tables, sweeps, languages, benches))
    return sections, [
        f"{gone} more tables have no room on this page; make one of fewer folders"
    ] if gone else []


def _table_section(number: int, table: Table) -> Section:
    return Section(
        *(f"table-{number}", table.title, _about(table.records) if table.recurrent else _GENERAL),
        *(lambda: [table_sheet(table)], table.records, lambda: table_groups(table)),
        warnings=[] if table.timed else [_UNTIMED],
    )


def _language_section(number: int, table: Table) -> Section:
    return Section(
        *(f"language-{number}", table.title, _LANGUAGE),
        *(lambda: _language_sheets(table), table.records, lambda: language_groups(table)),
        warnings=[] if table.timed else [_UNTIMED],
        expected=_UPDATES,
    )


def _language_sheets(table: Table) -> list[Sheet]:
    return [language_sheet(table), *agreement_sheets(table), *correction_sheets(table)]


def _about(records: Iterable[Record]) -> str:
    """Return what runs of a recurrent network do, in a few sentences."""
    known = TEXTS["recurrent"]
    return next((known[r.experiment] for r in records if r.experiment in known), known["others"])


def _shown(section: Section, room: int) -> dict[str, Any]:
    """Return what the template shows of a section."""
    records = section.records
    sheets = section.attempt("The table", section.sheets, ())
    shown = {
        "anchor": section.anchor,
        "title": section.title,
        "about": section.about,
        "tables": [_table(sheet) for sheet in sheets if sheet.rows],
        "groups": _drawn(section, section.attempt("The plots", section.groups, ()), room),
        "machine": section.attempt("The line about the machine", lambda: machine_line(records), ""),
        "settings": section.attempt("The settings", lambda: settings(records) if records else [], []),
        "pictures": section.attempt("The pictures of the graphs", lambda: _pictures(records), []),
    }
    said = section.attempt("The settings' differences", lambda: differences(records, section.expected), [])
    return shown | {"warnings": [*section.warnings, *_first(said, MOST_LINES)]}


def _table(sheet: Sheet) -> dict[str, Any]:
    gone = len(sheet.rows) - MOST_ROWS
    return {
        "title": sheet.title,
        "parts": sheet.first(MOST_ROWS).fitted(),
        "more": f"… and {gone} more rows, which the records hold." if gone > 0 else "",
        "failures": _first(sheet.failures, MOST_LINES),
        "notes": _first((*sheet.warnings, *sheet.notes, *sheet.remarks), MOST_LINES),
    }


def _first(lines: Sequence[str], most: int) -> list[str]:
    return [*lines[:most], *([f"… and {len(lines) - most} more"] if len(lines) > most else [])]


def _drawn(section: Section, groups: Sequence[Group], room: int) -> list[dict[str, Any]]:
    """Draw the plots that there is room for, those of the lowest rank first."""
    ranked = sorted((plot.rank, g, k) for g, group in enumerate(groups) for k, plot in enumerate(group.plots))
    kept = {(g, k) for _, g, k in ranked[: max(0, room)]}
    found: list[dict[str, Any]] = []
    for g, group in enumerate(groups):
        figures = [
            (
                plot.title,
                section.attempt(
                    f"The plot “{plot.title}”", lambda p=plot, s=f"{section.anchor}-{g}-{k}": draw(p, s), ""
                ),
            )
            for k, plot in enumerate(group.plots)
            if (g, k) in kept
        ]
        if figures := [(title, svg) for title, svg in figures if svg]:
            found.append({"heading": group.heading, "note": group.note, "figures": figures})
    if gone := len(ranked) - len(kept):
        section.warnings.append(f"{gone} plots have no room on this page; make a page of fewer folders.")
    return found


def _pictures(records: Sequence[Record]) -> list[tuple[str, Chain]]:
    """Return a picture for each graph that differs, under the names of the rows that share it."""
    rows: dict[str, dict[str, None]] = {}
    graphs = {key(r.graph): r.graph for r in reversed(records) if r.graph}
    for record in records:
        if record.graph:
            rows.setdefault(key(record.graph), {})[row_label(record)] = None
    shown = [
        (text(list(names), 120), chain_of(graphs[same])) for same, names in list(rows.items())[:MOST_PICTURES]
    ]
    return [(title, chain) for title, chain in shown if chain is not None]


def _methods(records: Iterable[Record]) -> list[tuple[str, str]]:
    """Return the methods of the page that are known, in the order of the tables, with a line about each."""
    runs = [r for r in records if not is_bench(r) or r.experiment == "bench/step"]
    unrolled = {r.method for r in runs if is_recurrent(r) and r.cell.unroll is not None}
    others = {r.method for r in runs if not is_recurrent(r) or r.cell.unroll is None}
    found = [(name, about) for name, about in METHODS.items() if name in others]
    for name, about in RECURRENT.items():
        if name in unrolled or (name in others and name not in METHODS):
            # One name may stand for two things, on a page that has both.
            found.append((f"{name}, recurrent" if name in others and name in METHODS else name, about))
    return sorted(found, key=lambda entry: position(entry[0].partition(",")[0]))


def _printable(page: str) -> str:
    """Replace what no page may hold: control characters, and halves of characters."""
    whole = page.encode("utf-8", "replace").decode("utf-8")
    return whole.translate({c: "\N{REPLACEMENT CHARACTER}" for c in range(32) if chr(c) not in "\n\t"})
