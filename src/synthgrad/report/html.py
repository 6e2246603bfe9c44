"""The report: one self-contained page, readable without a network, on a phone and in the dark."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from ..records import Record
from .format import BENCH_HEADINGS, bench_cells, cells, headings
from .plots import curves, quality_plots
from .summary import Table, tabulate

__all__ = ["write_report"]


def write_report(path: Path, records: Iterable[Record], problems: Sequence[str] = ()) -> None:
    """Write the report of some records; ``problems`` says what had to be left out of it.

    The file appears whole or not at all.
    """
    records = list(records)
    tables = tabulate(records)
    benches = [r for r in records if str(r.get("experiment", "")).startswith("bench/")]
    environment = Environment(
        loader=PackageLoader("synthgrad.report"), autoescape=True, undefined=StrictUndefined
    )
    page = environment.get_template("report.html.j2").render(
        sections=[_section(t) for t in tables],
        bench_headings=BENCH_HEADINGS,
        benches=[(bench_cells(r), r.get("status") != "ok") for r in benches],
        problems=list(problems),
    )
    partial = path.with_suffix(".partial")
    try:
        partial.write_text(page, encoding="utf-8")
        partial.replace(path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise


def _section(table: Table) -> dict[str, object]:
    first = table.records[0]
    env = first.get("env") or {}
    config = {k: v for k, v in (first.get("config") or {}).items() if k != "rule"}
    return {
        "title": table.title,
        "headings": headings(table),
        "rows": [(cells(row), row.num_bad > 0) for row in table.rows],
        "notes": [f"{row.method}: {row.note}" for row in table.rows if row.note],
        "plots": curves(table) + quality_plots(table),
        "settings": {**config, "seeds": sorted({r.get("seed") for r in table.records}, key=str)},
        "machine": env,
    }
