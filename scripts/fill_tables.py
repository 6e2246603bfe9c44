"""Fill the tables of the documents from committed records, or check that they agree.

Usage: python scripts/fill_tables.py [--check]

A table stands between two comments, the first of which names the folder of its records:

    <!-- table results/compare/2026-11-21-… -->
    <!-- end -->

With `errors` after the folder, columns of times are left out: for runs that shared the machine. With `key=value`
words after it, as in `layers=4 compiled=false`, only records whose method or cell says so are shown.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from synthgrad.records import FILE, Record, read
from synthgrad.report import bench_markdown, markdown, tabulate

ROOT = Path(__file__).parent.parent
MARKED = re.compile(
    r"(<!-- table (?P<folder>\S+)(?P<errors> errors)?(?P<only>(?: \w+=\S+)*) -->\n).*?(?P<end><!-- end -->)",
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
    for made in tabulate(records):
        parts += [f"**{made.title}**\n", markdown(made, errors_only=errors_only)]
    benches = [r for r in records if str(r["experiment"]).startswith("bench/")]
    if benches:
        parts += [bench_markdown(benches)]
    return "\n".join([*parts, _machine(records)]) + "\n"


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
    only = dict(word.split("=", 1) for word in marked["only"].split())
    filled = table(marked["folder"], only, errors_only=bool(marked["errors"]))
    return marked[1] + "\n" + filled + marked["end"]


def main() -> None:
    """Rewrite the documents; with ``--check`` fail if that would change one."""
    check = "--check" in sys.argv[1:]
    drifted: list[Path] = []
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        before = path.read_text(encoding="utf-8")
        after = MARKED.sub(_filled, before)
        if after != before:
            drifted.append(path)
            if not check:
                path.write_text(after, encoding="utf-8")
    for path in drifted:
        print(
            f"{path.relative_to(ROOT)}: {'differs from the records, run `make tables`' if check else 'filled'}"
        )
    sys.exit(1 if check and drifted else 0)


if __name__ == "__main__":
    main()
