"""Fill the tables of the documents from committed records, or check that they agree.

Usage: python scripts/fill_tables.py [--check]

A table stands between two comments, the first of which names the folder of its records:

    <!-- table results/compare/2026-11-21-… -->
    <!-- end -->

With `errors` after the folder, columns of times are left out: for runs that shared the machine. With `key=value`
words after it, as in `layers=4 compiled=false`, only records whose method or cell says so are shown.

A grid of networks and methods, or of methods and lengths of unrolls, made of the records of one or several folders,
and a plot of one folder with the file that it is written to stand between comments of their own:

    <!-- grid results/table1/2026-11-21-… results/compare/2026-11-21-… -->
    <!-- end -->
    <!-- plot results/sparse/2026-11-21-… pictures/sparse.svg -->
    <!-- end -->
    <!-- plot results/copy/2026-11-21-… pictures/copy.svg over=seconds unroll=3 -->
    <!-- end -->

What is plotted: of a sweep over update probabilities or lags the test error; of recurrent runs over several lengths of unrolls
what they are measured by, the medians, and of one length every seed; of other recurrent runs the first thing that
their curves have, or another that `of=NAME` names; of a benchmark's lines of one width and batch size their first
measure, or the metric that `of=NAME` names, over depth. `over=data` (which is meant if nothing is said), `over=seconds`
and, of several lengths, `over=unroll` say over what. All other words choose among the records, as above.
"""

from __future__ import annotations

import html
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from synthgrad.lab.records import FILE, Record, read
from synthgrad.lab.report import (
    OVER,
    Sheet,
    bench_groups,
    bench_markdown,
    bench_picture,
    budget_sheets,
    grid_sheets,
    has_lags,
    lag_picture,
    markdown,
    measure_picture,
    noted_markdown,
    single_tables,
    sparse_picture,
    sparse_sheet,
    sparse_sweeps,
    standalone,
    tabulate,
    unroll_grids,
    unroll_picture,
    unroll_sheets,
    unroll_sweeps,
)

ROOT = Path(__file__).parent.parent
MARKED = re.compile(
    r"(<!-- table (?P<folder>\S+)(?P<errors> errors)?(?P<only>(?: \w+=\S+)*) -->\n).*?(?P<end><!-- end -->)",
    re.DOTALL,
)
GRID = re.compile(r"(<!-- grid (?P<folders>[^>]+?) -->\n).*?(?P<end><!-- end -->)", re.DOTALL)
PLOT = re.compile(
    r"(<!-- plot (?P<folder>\S+) (?P<picture>\S+\.svg)(?P<words>(?: \w+=\S+)*) -->\n).*?(?P<end><!-- end -->)",
    re.DOTALL,
)


def table(folder: str, only: dict[str, str], *, errors_only: bool) -> str:
    """Return the tables of a results folder, with the machine that they were measured on."""
    path = ROOT / folder / FILE
    records, problems = read(path)
    records = [r for r in records if all(_says(r, key) == value for key, value in only.items())]
    if problems or not records:
        sys.exit("\n".join(problems) or f"{path}: holds no records {only or ''}")
    parts: list[str] = []
    tables = tabulate(records)
    # Of several budgets, and of sweeps over update probabilities or unrolls, the tables that gather them say it all.
    parts += [noted_markdown(sparse_sheet(sweep)) for sweep in sparse_sweeps(records)]
    parts += [noted_markdown(sheet) for sheet in unroll_sheets(records, errors_only=errors_only)]
    parts += [noted_markdown(sheet) for sheet in budget_sheets(tables, errors_only=errors_only)]
    for made in single_tables(tables):
        parts += [f"**{made.title}**\n", markdown(made, errors_only=errors_only)]
    benches = [r for r in records if str(r["experiment"]).startswith("bench/")]
    if benches:
        parts += [bench_markdown(benches)]
    return "\n".join([*parts, _machine(records)]) + "\n"


def grid(folders: Sequence[str]) -> str:
    """Return the grids of the records of some folders, one for each tier."""
    records: list[Record] = []
    for folder in folders:
        found, problems = read(ROOT / folder / FILE)
        if problems or not found:
            sys.exit("\n".join(problems) or f"{ROOT / folder / FILE}: holds no records")
        records += found
    sheets: list[Sheet] = [*grid_sheets(records, least=1), *unroll_grids(records)]
    if not sheets:
        sys.exit(
            f"{' '.join(folders)}: no records for a grid; name folders of `compare`, or of `run` with table1, copy, "
            "repeat_copy or charlm"
        )
    return "\n".join([*map(noted_markdown, sheets), _machine(records)]) + "\n"


def plot(folder: str, words: dict[str, str]) -> str:
    """Return a plot of a folder's records as the text of an SVG file; the words say which."""
    path = ROOT / folder / FILE
    records, problems = read(path)
    over, of = words.get("over", "data"), words.get("of", "")
    if over not in OVER:
        sys.exit(f"{path}: over={over}; accepted: {', '.join(OVER)}")
    chosen = {key: value for key, value in words.items() if key not in ("over", "of")}
    records = [r for r in records if all(_says(r, key) == value for key, value in chosen.items())]
    benches = bench_groups(records)
    if benches and not problems:
        svg = bench_picture(*next(iter(benches.items())), of) if len(benches) == 1 else ""
        return (
            standalone(svg)
            if svg
            else sys.exit(
                f"{path}: expected lines of one benchmark, width and batch size that have {of or 'a measure to draw'}; "
                "choose among them, as in width=64 batch_size=32"
            )
        )
    if records and has_lags(records) and not problems:
        return standalone(lag_picture(records))
    sweeps, unrolls = sparse_sweeps(records), unroll_sweeps(records, least=1)
    tables = [] if unrolls else [t for t in tabulate(records) if t.recurrent]
    num = len(sweeps) + len(unrolls) + len(tables)
    if problems or num != 1:
        sys.exit("\n".join(problems) or f"{path}: holds {num} sweeps {words or ''}, expected one")
    if sweeps:
        return standalone(sparse_picture(sweeps[0]))
    svg = unroll_picture(unrolls[0], over) if unrolls else measure_picture(tables[0], of, over)
    return standalone(svg) if svg else sys.exit(f"{path}: no run has what is to be plotted {words or ''}")


def _says(record: Record, key: str) -> str:
    value = record["method"] if key == "method" else record["cell"].get(key)
    return str(value).lower()


def _machine(records: list[Record]) -> str:
    env = records[-1]["env"]
    words = [str(env["device"])]
    if len({(r["env"]["threads"], r["env"].get("jobs", 1)) for r in records}) == 1:
        words += [f"{env['threads']} thread{'s' if env['threads'] > 1 else ''}"]
        words += [f"{env['jobs']} runs side by side"] if env.get("jobs", 1) > 1 else []
    return f"*{', '.join(words)}; torch {env['torch']}.*\n"


def _filled(marked: re.Match[str]) -> str:
    filled = table(marked["folder"], _words(marked, "only"), errors_only=bool(marked["errors"]))
    return marked[1] + "\n" + filled + marked["end"]


def _filled_grid(marked: re.Match[str]) -> str:
    return marked[1] + "\n" + grid(marked["folders"].split()) + marked["end"]


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
    after = GRID.sub(_filled_grid, MARKED.sub(_filled, before))
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
