"""Measure two checkouts against each other: the same benchmark, in turn, in one run.

Usage: python scripts/compare_trees.py BEFORE AFTER --rounds N --out FILE -- layer-parallel --layers 16 --threads 1 …

What follows ``--`` is handed to ``synthgrad bench`` of each checkout. In every round both run once, and the one that
begins changes from round to round, so that what disturbs the machine disturbs both. The lines of all rounds are
appended to FILE with two more keys, ``tree`` (``before`` or ``after``) and ``round``. At the end a line for each cell
says by how much the median step of AFTER is longer than that of BEFORE, with the spread over the rounds.

Both checkouts run in the environment of this program, each with its own sources.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

Line = dict[str, Any]


def run(tree: Path, arguments: Sequence[str]) -> list[Line]:
    """Run a benchmark of a checkout; return its lines."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "synthgrad", "bench", *arguments, "--out", folder, "--quiet"]
        done = subprocess.run(
            command,
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(tree / "src")},
            capture_output=True,
            text=True,
        )
        if done.returncode == 2:
            sys.exit(f"{tree}: {done.stderr.strip()}")
        return [json.loads(line) for line in (Path(folder) / "results.jsonl").read_text().splitlines()]


def ratios(lines: Sequence[Line]) -> dict[str, list[float]]:
    """Return, by method and cell, the ratio of the median step after to that before, of each round."""
    found: dict[tuple[str, int], dict[str, float]] = {}
    for line in lines:
        step_ms = line["metrics"].get("step_ms_median")
        if step_ms is not None:
            cell = " ".join(f"{key}={value}" for key, value in line["cell"].items() if value is not None)
            name = f"{line['method']} {cell}"
            found.setdefault((name, line["round"]), {})[line["tree"]] = step_ms
    pairs: dict[str, list[float]] = {}
    for (name, _), times in found.items():
        if len(times) == 2:
            pairs.setdefault(name, []).append(times["after"] / times["before"])
    return pairs


def main() -> None:
    """Run the rounds, append the lines, print the ratios."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("arguments", nargs="+", help="of synthgrad bench, after --")
    given = parser.parse_args()
    trees = {"before": given.before.resolve(), "after": given.after.resolve()}
    for name, tree in trees.items():
        if not (tree / "src" / "synthgrad").is_dir():
            sys.exit(f"{name}: {tree} is no checkout of synthgrad; give its top folder")
    given.out.parent.mkdir(parents=True, exist_ok=True)
    lines: list[Line] = []
    for number in range(given.rounds):
        order = list(trees) if number % 2 == 0 else list(reversed(trees))
        for name in order:
            made = [{**line, "tree": name, "round": number} for line in run(trees[name], given.arguments)]
            lines += made
            with given.out.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(line) + "\n" for line in made)
    for name, found in ratios(lines).items():
        print(f"{median(found):.3f} × ({min(found):.3f} to {max(found):.3f}, {len(found)} rounds)  {name}")


if __name__ == "__main__":
    main()
