"""Fill the tables of the documents from committed records, or check that they agree.

Usage: python scripts/fill_tables.py [--check]

A table stands between two comments, the first of which names the folder of its records:

    <!-- table results/compare/2026-11-21-… -->
    <!-- end -->

With `errors` after the folder, columns of times are left out: for runs that shared the machine. Of language models
`cosine` shows in place of the table how far the credit at each interface agrees with the true gradient, and `weight`
late corrections by lag, share of messages and weight. With `key=value`
words after it, as in `layers=4 compiled=false`, only records whose method, cell, configuration or rule says so are
shown; `key=one,other` has both. Of language models, words about cuts and rules do not concern backpropagation, which
stays.

A grid of networks and methods, or of methods and lengths of unrolls, made of the records of one or several folders,
and a plot of one folder with the file that it is written to stand between comments of their own:

    <!-- grid results/table1/2026-11-21-… results/compare/2026-11-21-… -->
    <!-- end -->
    <!-- plot results/sparse/2026-11-21-… pictures/sparse.svg -->
    <!-- end -->
    <!-- plot results/copy/2026-11-21-… pictures/copy.svg over=seconds unroll=3 -->
    <!-- end -->

Errors of many networks after some numbers of steps:

    <!-- steps results/cdni_defaults/2026-11-30-… at=200,500 -->
    <!-- end -->

What is plotted: of a sweep over update probabilities or lags the test error; of recurrent runs over several lengths of unrolls
what they are measured by, the medians, and of one length every seed; of other recurrent runs the first thing that
their curves have, or another that `of=NAME` names; of a benchmark's lines of one width and batch size their first
measure, or the metric that `of=NAME` names, over depth; of language models validation bits per character, or what
`of=NAME` names. `over=data` (which is meant if nothing is said), `over=seconds`, of several lengths `over=unroll` and of
language models `over=lag`, `over=cosine` (of the credit) and `over=weight` (of late corrections) say over what. All other words choose among the records, as above.
"""

from __future__ import annotations

import html
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from synthgrad.lab.records import FILE, Record, read
from synthgrad.lab.report.agreement import agreement_sheets
from synthgrad.lab.report.bench_plots import bench_plot
from synthgrad.lab.report.benches import bench_groups
from synthgrad.lab.report.corrections import correction_sheets
from synthgrad.lab.report.frame import frame_of
from synthgrad.lab.report.grids import sparse_sweeps
from synthgrad.lab.report.labels import is_language_model
from synthgrad.lab.report.language_models import language_tables
from synthgrad.lab.report.language_plots import language_plots
from synthgrad.lab.report.many_networks import many_networks_sheet
from synthgrad.lab.report.plot import Plot, draw, standalone
from synthgrad.lab.report.plots import OVER, has_lags, lag_plot, measure_plot, sparse_group, unroll_plot
from synthgrad.lab.report.sheet import Sheet, markdown
from synthgrad.lab.report.tables import document_sheets, grids_of, single_tables
from synthgrad.lab.report.trainings import Table
from synthgrad.lab.report.unrolls import unroll_sweeps

ROOT = Path(__file__).parent.parent
MARKED = re.compile(
    r"(<!-- table (?P<folder>\S+)(?: (?P<kind>errors|cosine|weight))?(?P<only>(?: \w+=\S+)*) -->\n).*?(?P<end><!-- end -->)",
    re.DOTALL,
)
GRID = re.compile(r"(<!-- grid (?P<folders>[^>]+?) -->\n).*?(?P<end><!-- end -->)", re.DOTALL)
PLOT = re.compile(
    r"(<!-- plot (?P<folder>\S+) (?P<picture>\S+\.svg)(?P<words>(?: \w+=\S+)*) -->\n).*?(?P<end><!-- end -->)",
    re.DOTALL,
)
#: Further tables of language models.
SHEETS: Mapping[str, Callable[[Table], list[Sheet]]] = {
    "cosine": agreement_sheets,
    "weight": correction_sheets,
}
STEPS = re.compile(r"(<!-- steps (?P<folder>\S+) at=(?P<at>[\d,]+) -->\n).*?(?P<end><!-- end -->)", re.DOTALL)
#: What says nothing of a language model without cuts.
_OF_CUTS = ("modules", "at", "delay", "head", "blocks", "weight", "share", "versions", "error_feedback")


def table(folder: str, only: dict[str, str], kind: str = "") -> str:
    """Return the tables of a results folder, with the machine that they were measured on.

    Args:
        folder: of the records.
        only: what the records must say.
        kind: ``errors`` for tables without times, or a key of `SHEETS`; empty for whole tables.
    """
    path = ROOT / folder / FILE
    records, problems = read(path)
    records = [r for r in records if _is_chosen(r, only)]
    if problems or not records:
        sys.exit("\n".join(problems) or f"{path}: holds no records {only or ''}")
    if kind in SHEETS:
        sheets = [s for t in language_tables(frame_of(records)) for s in SHEETS[kind](t)]
        if not sheets:
            sys.exit(f"{path}: holds nothing for a table of kind '{kind}'")
    else:
        sheets = document_sheets(records, times=kind != "errors")
    # A benchmark's table says what it is by its columns.
    parts = [markdown(sheet, titled=not sheet.title.startswith("bench/")) for sheet in sheets]
    return "\n".join([*parts, _machine(records)]) + "\n"


def grid(folders: Sequence[str]) -> str:
    """Return the grids of the records of some folders, one for each tier."""
    records: list[Record] = []
    for folder in folders:
        found, problems = read(ROOT / folder / FILE)
        if problems or not found:
            sys.exit("\n".join(problems) or f"{ROOT / folder / FILE}: holds no records")
        records += found
    sheets = grids_of(records)
    if not sheets:
        sys.exit(
            f"{' '.join(folders)}: no records for a grid; name folders of `compare`, or of `run` with table1, copy, "
            "repeat_copy or charlm"
        )
    return "\n".join([*map(markdown, sheets), _machine(records)]) + "\n"


def many_networks(folder: str, steps: Sequence[int]) -> str:
    """Return the errors of all networks of a results folder after some numbers of steps."""
    path = ROOT / folder / FILE
    records, problems = read(path)
    tables = single_tables(frame_of(records))
    if problems or not tables:
        sys.exit("\n".join(problems) or f"{path}: holds no records of trainings")
    return "\n".join([markdown(many_networks_sheet(tables, steps)), _machine(records)]) + "\n"


def plot(folder: str, words: dict[str, str]) -> str:
    """Return a plot of a folder's records as the text of an SVG file; the words say which."""
    path = ROOT / folder / FILE
    records, problems = read(path)
    over, of = words.get("over", "data"), words.get("of", "")
    if over not in OVER:
        sys.exit(f"{path}: over={over}; accepted: {', '.join(OVER)}")
    chosen = {key: value for key, value in words.items() if key not in ("over", "of")}
    records = [r for r in records if _is_chosen(r, chosen)]
    if problems:
        sys.exit("\n".join(problems))
    drawn = _drawn(records, over, of)
    return standalone(draw(drawn)) if isinstance(drawn, Plot) else sys.exit(f"{path}: {drawn}")


def _drawn(records: list[Record], over: str, of: str) -> Plot | str:
    """Return the plot of some records, or what is wrong with them."""
    if benches := bench_groups(records):
        plot = bench_plot(*next(iter(benches.items())), of) if len(benches) == 1 else None
        return plot or (
            f"expected lines of one benchmark, width and batch size that have {of or 'a measure to draw'}; "
            "choose among them, as in width=64 batch_size=32"
        )
    frame = frame_of(records)
    tables, unrolls = single_tables(frame), unroll_sweeps(frame, least=1)
    if len(tables) == 1 and has_lags(tables[0]):
        return lag_plot(tables[0])
    plots = [sparse_group(sweep).plots[0] for sweep in sparse_sweeps(frame)]
    plots += [plot for sweep in unrolls if (plot := unroll_plot(sweep, over))]
    plots += [plot for table in language_tables(frame) for plot in language_plots(table, over, of)]
    plots += [] if unrolls else [p for t in tables if t.recurrent and (p := measure_plot(t, of, over))]
    return (
        plots[0]
        if len(plots) == 1
        else f"holds {len(plots)} sweeps of which a plot can be made, expected one"
    )


def _is_chosen(record: Record, words: dict[str, str]) -> bool:
    """Does a record say what all of the words say?"""
    said = {key: _says(record, key) for key in words}
    return all(said[key] is None or said[key] in value.split(",") for key, value in words.items())


def _says(record: Record, key: str) -> str | None:
    """Return what a record says of a key, in lower case; None if that does not concern it."""
    if key == "method":
        return record.method.lower()
    parts = (record.cell, record.config, record.config.rule)
    value = next((part[key] for part in parts if part.get(key) is not None), None)
    if value is None and record.method == "backprop" and is_language_model(record) and key in _OF_CUTS:
        return None
    return str(value).lower()


def _machine(records: list[Record]) -> str:
    env = records[-1].env
    words = [env.device] if env.device else []
    if len({(r.env.threads, r.env.jobs or 1) for r in records}) == 1:
        words += [f"{env.threads or 1:g} thread{'' if env.threads == 1 else 's'}"]
        words += [f"{env.jobs:g} runs side by side"] if (env.jobs or 1) > 1 else []
    return f"*{', '.join(words)}; torch {env.torch}.*\n"


def _filled(marked: re.Match[str]) -> str:
    filled = table(marked["folder"], _words(marked, "only"), marked["kind"] or "")
    return marked[1] + "\n" + filled + marked["end"]


def _filled_grid(marked: re.Match[str]) -> str:
    return marked[1] + "\n" + grid(marked["folders"].split()) + marked["end"]


def _filled_steps(marked: re.Match[str]) -> str:
    steps = [int(step) for step in marked["at"].split(",")]
    return marked[1] + "\n" + many_networks(marked["folder"], steps) + marked["end"]


def _words(marked: re.Match[str], name: str) -> dict[str, str]:
    return dict(word.split("=", 1) for word in marked[name].split())


def _shown_plot(marked: re.Match[str], svg: str) -> str:
    """Return the place of a plot, with what a reader is told who cannot see it."""
    said = re.search(r'aria-label="([^"]*)"', svg)
    about = html.unescape(said[1]) if said else ""
    about = about[:1].upper() + about[1:]
    if "probability of an update" in about:
        about = (
            "Test error over the probability of an update, by method; equal updates solid, equal steps dashed"
        )
    return f"{marked[1]}\n![{about}]({marked['picture']})\n\n{marked['end']}"


def documents(page: Path) -> dict[Path, str]:
    """Return the texts that a page, and the pictures that it has plotted, must have."""
    before = page.read_text(encoding="utf-8")
    made = {
        page.parent / found["picture"]: plot(found["folder"], _words(found, "words"))
        for found in PLOT.finditer(before)
    }
    after = STEPS.sub(_filled_steps, GRID.sub(_filled_grid, MARKED.sub(_filled, before)))
    shown = PLOT.sub(lambda marked: _shown_plot(marked, made[page.parent / marked["picture"]]), after)
    return {**made, page: shown}


def main() -> None:
    """Rewrite the documents; with ``--check`` fail if that would change one."""
    check = "--check" in sys.argv[1:]
    drifted: list[Path] = []
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        for path, text in documents(page).items():
            if not path.exists() or path.read_text(encoding="utf-8") != text:
                drifted.append(path)
                if not check:
                    path.write_text(text, encoding="utf-8")
    for path in drifted:
        print(
            f"{path.relative_to(ROOT)}: {'differs from the records, run `make tables`' if check else 'filled'}"
        )
    sys.exit(1 if check and drifted else 0)


if __name__ == "__main__":
    main()
