"""Each folder imports only from those it may: read from the sources, lazily made imports included."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import synthgrad

ROOT = Path(synthgrad.__file__).parent
#: Of the library's folders and the laboratory's: what each may import of the others.
OWN: dict[str, set[str]] = {
    "core": set(),
    "rules": {"core"},
    "optim": {"core"},
    "engines": {"core", "rules", "optim", "version"},
    "planner": {"core"},
    "testing": {"core", "engines"},
    "lab/records": {"core"},
    "lab/tasks": {"core"},
    "lab/wan": {"core"},
    "lab/training": {"core", "rules", "engines", "optim", "lab/tasks", "lab/records", "version"},
    "lab/recipes": {"lab/training"},
    "lab/bench": {
        "core",
        "rules",
        "engines",
        "lab/tasks",
        "lab/records",
        "lab/wan",
        "lab/training",
        "lab/recipes",
        "planner",
        "version",
    },
    "lab/report": {"lab/records"},
    "lab/cli": {
        "core",
        "rules",
        "planner",
        "lab/training",
        "lab/recipes",
        "lab/bench",
        "lab/report",
        "lab/records",
        "lab/tasks",
        "version",
    },
}
#: Modules that every room of the laboratory may import: names and options, without PyTorch.
COMMON = {"lab/names", "lab/options"}
THIRD: dict[str, set[str]] = {
    "core": {"torch", "typing_extensions"},  # which PyTorch brings; for type checkers only
    "rules": {"torch"},
    "optim": {"torch"},
    "engines": {"torch"},
    "planner": {"torch"},
    "testing": {"torch"},
    "lab/records": set(),
    "lab/tasks": {"torch", "numpy", "pooch", "safetensors", "tokenizers"},
    "lab/wan": set(),
    "lab/training": {"torch", "numpy"},
    "lab/recipes": {"torch"},
    "lab/bench": {"torch", "numpy"},
    "lab/report": {"matplotlib", "jinja2", "pandas"},
    "lab/cli": {"click", "rich", "torch"},
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
            if names[0] in ("synthgrad", "synthgrad.lab"):
                names = [f"{names[0]}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            parts = name.split(".")
            if parts[0] != "synthgrad":
                found.add(("third", parts[0]))
            else:
                found.add(("own", "/".join(parts[1 : 3 if parts[1] == "lab" else 2])))
    return found


def test_every_folder_has_its_rule() -> None:
    folders = {p.name for p in ROOT.iterdir() if p.is_dir() and any(p.glob("*.py"))} - {"lab"}
    rooms = {f"lab/{p.name}" for p in (ROOT / "lab").iterdir() if p.is_dir() and any(p.glob("*.py"))}
    assert folders | rooms == set(OWN) == set(THIRD)


def test_the_library_imports_nothing_of_the_laboratory() -> None:
    assert not [(a, b) for a, others in OWN.items() if not a.startswith("lab/") for b in others if "lab" in b]
    for path in [*ROOT.glob("*.py"), ROOT / "lab" / "__init__.py"]:
        theirs = {name for kind, name in imports(path) if kind == "own" and name.startswith("lab")}
        assert theirs == ({"lab/cli"} if path.name == "__main__.py" else set()), path


@pytest.mark.parametrize("folder", OWN)
def test_imports_go_one_way(folder: str) -> None:
    for path in (ROOT / folder).rglob("*.py"):
        for kind, name in imports(path):
            if kind == "own":
                allowed = OWN[folder] | {folder} | (COMMON if folder.startswith("lab/") else set())
                assert name in allowed, f"{path.name} imports synthgrad.{name}"
            elif name not in sys.stdlib_module_names:
                assert name in THIRD[folder], f"{path.name} imports {name}"


#: What no part of the library may load, though it stands beside it in the tests' environment.
OTHERS = (
    *("matplotlib", "rich", "click", "pooch", "numpy", "jinja2", "tqdm", "synthgrad.lab"),
    *("torch._dynamo", "torch.distributed.pipelining", "torch.distributed.tensor"),  # a second each
)


def test_importing_the_library_loads_no_laboratory_and_prints_nothing() -> None:
    code = (
        "import sys, torch; before = set(sys.modules); import synthgrad as sg; sg.decouple, sg.engines.Stages; "
        f"print([m for m in {OTHERS} if m in set(sys.modules) - before])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    assert (done.stdout, done.stderr) == ("[]\n", "")


@pytest.mark.parametrize("missing", [["click"], ["matplotlib", "rich"]])
def test_without_the_laboratory_the_command_says_what_to_install(missing: list[str]) -> None:
    code = (
        "import importlib.util as u; find = u.find_spec; "
        f"u.find_spec = lambda name: None if name in {missing} else find(name); "
        "from synthgrad.__main__ import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == (
        f"Error: the command line needs {', '.join(missing)}, which the library alone does not install; run: "
        "pip install 'synthgrad[lab]'\n"
    )
