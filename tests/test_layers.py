"""Each folder imports only from those it may: read from the sources, lazily made imports included."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import synthgrad

ROOT = Path(synthgrad.__file__).parent
OWN: dict[str, set[str]] = {
    "core": set(),
    "records": {"core"},
    "rules": {"core"},
    "engines": {"core", "rules"},
    "tasks": {"core"},
    "experiments": {"core", "rules", "engines", "tasks", "records", "version"},
    "report": {"records"},
    "cli": {"core", "experiments", "report", "records", "tasks", "version"},
}
THIRD: dict[str, set[str]] = {
    "core": {"torch"},
    "records": set(),
    "rules": {"torch"},
    "engines": {"torch"},
    "tasks": {"torch", "numpy", "pooch"},
    "experiments": {"torch", "numpy"},
    "report": {"matplotlib", "jinja2"},
    "cli": {"click", "rich", "torch"},
}


def imports(path: Path) -> set[tuple[str, str]]:
    """Return ("own", folder) and ("third", package) of every import in a file."""
    found: set[tuple[str, str]] = set()
    package = ("synthgrad", *path.relative_to(ROOT).parts[:-1])
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            names = [f"{base}.{node.module}".strip(".") if node.module else base]
            if names[0] == "synthgrad":
                names = [f"synthgrad.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            parts = name.split(".")
            found.add(("own", parts[1]) if parts[0] == "synthgrad" else ("third", parts[0]))
    return found


def test_every_folder_has_its_rule() -> None:
    folders = {p.name for p in ROOT.iterdir() if p.is_dir() and any(p.glob("*.py"))}
    assert folders == set(OWN) == set(THIRD)


@pytest.mark.parametrize("folder", OWN)
def test_imports_go_one_way(folder: str) -> None:
    for path in (ROOT / folder).rglob("*.py"):
        for kind, name in imports(path):
            if kind == "own":
                assert name in OWN[folder] | {folder}, f"{path.name} imports synthgrad.{name}"
            elif name not in sys.stdlib_module_names:
                assert name in THIRD[folder], f"{path.name} imports {name}"


def test_files_stay_small() -> None:
    long = {p.name: n for p in ROOT.rglob("*.py") if (n := len(p.read_text().splitlines())) > 400}
    assert not long, "a question at 400 lines: is it one purpose?"


def test_importing_the_library_loads_no_reporting_and_prints_nothing() -> None:
    code = (
        "import sys, synthgrad; print([m for m in ('matplotlib','rich','click','pooch') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    assert (done.stdout, done.stderr) == ("[]\n", "")
