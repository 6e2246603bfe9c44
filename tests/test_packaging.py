"""Wheel and source distribution hold what they must: all of the package, and all that its tests need."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

import pytest

from synthgrad.__main__ import LAB_PACKAGES

ROOT = Path(__file__).parent.parent
#: Of no use, or harmful, outside a checkout.
LEFT_BEHIND = (".ci", ".gitignore", ".github")

pytestmark = [
    pytest.mark.skipif(
        not (ROOT / "pyproject.toml").exists(), reason="needs a checkout or a source distribution"
    ),
    *(
        pytest.mark.skipif(importlib.util.find_spec(name) is None, reason=f"needs the package {name}")
        for name in ("build", "hatchling")
    ),
]


def ours() -> set[str]:
    """Return the files of the project: what git knows or would know, else what lies where we ship from."""
    command = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout
        found = {name for name in listed.split("\0") if name}
    except (OSError, subprocess.SubprocessError):
        build = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["hatch"]["build"]
        shipped = [*build["targets"]["sdist"]["include"], "/pyproject.toml"]
        tops = [top for pattern in shipped for top in ROOT.glob(pattern.lstrip("/"))]
        found = {p.relative_to(ROOT).as_posix() for top in tops for p in (top, *top.rglob("*"))}
    return {
        name
        for name in found
        if (ROOT / name).is_file()
        and PurePosixPath(name).parts[0] not in LEFT_BEHIND
        and not {"__pycache__", ".pytest_cache", ".venv"} & set(PurePosixPath(name).parts)
        and name != "PKG-INFO"
    }


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with both distributions; the wheel is built from the source distribution."""
    folder = tmp_path_factory.mktemp("dist")
    done = subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def wheel(built: Path) -> dict[str, bytes]:
    (path,) = built.glob("*.whl")
    assert path.name.endswith("-py3-none-any.whl")
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


@pytest.fixture(scope="module")
def sdist(built: Path) -> set[str]:
    """Return the names in the source distribution, without the folder around them."""
    (path,) = built.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = [PurePosixPath(member.name) for member in archive.getmembers() if member.isfile()]
    assert len({name.parts[0] for name in names}) == 1
    return {PurePosixPath(*name.parts[1:]).as_posix() for name in names}


def below(names: Iterable[str], folder: str) -> set[str]:
    return {name for name in names if name.startswith(folder + "/")}


def test_the_wheel_holds_the_package_and_nothing_else(wheel: dict[str, bytes]) -> None:
    expected = {name.removeprefix("src/") for name in below(ours(), "src/synthgrad")}
    assert below(wheel, "synthgrad") == expected
    rest = {name.split("/")[0] for name in wheel} - {"synthgrad"}
    assert len(rest) == 1
    assert rest.pop().endswith(".dist-info")


@pytest.mark.parametrize(
    "name",
    [
        "py.typed",
        "lab/report/published.json",
        "lab/report/templates/report.html.j2",
        "lab/report/templates/report.css",
        "lab/tasks/embedded/mnist_10k.npz",
        "lab/tasks/embedded/ATTRIBUTION.md",
    ],
)
def test_the_wheel_holds_data_as_it_is_here(name: str, wheel: dict[str, bytes]) -> None:
    assert wheel[f"synthgrad/{name}"] == (ROOT / "src" / "synthgrad" / name).read_bytes()


def test_the_wheel_says_what_it_is(wheel: dict[str, bytes]) -> None:
    info = {name.split("/", 1)[1]: content for name, content in wheel.items() if ".dist-info/" in name}
    assert info["licenses/LICENSE"] == (ROOT / "LICENSE").read_bytes()
    assert b"synthgrad = synthgrad.__main__:main" in info["entry_points.txt"]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    metadata = info["METADATA"].decode()
    assert f"License-Expression: {project['license']}" in metadata
    for extra in project["optional-dependencies"]:
        assert f"Provides-Extra: {extra}\n" in metadata
    alone = [
        line for line in metadata.splitlines() if line.startswith("Requires-Dist") and "extra" not in line
    ]
    assert alone == ["Requires-Dist: torch>=2.11"]
    lab = {re.split("[<>=]", need)[0] for need in project["optional-dependencies"]["lab"]}
    assert lab == set(LAB_PACKAGES)
    (text,) = [w for w in metadata.split("\n\n", 1)[1:]]
    assert text.strip() == (ROOT / "README.md").read_text(encoding="utf-8").strip()


def test_the_source_distribution_holds_the_project(sdist: set[str]) -> None:
    # A new file at the top must be named in pyproject.toml, or listed above as one to leave behind.
    assert sdist - {"PKG-INFO"} - set(LEFT_BEHIND) == ours()


@pytest.mark.parametrize(
    "name",
    [
        *("LICENSE", "README.md", "CHANGELOG.md", "CONTRIBUTING.md", "Makefile", "constraints.txt"),
        *("pyproject.toml", "mkdocs.yml", "tests/conftest.py", "scripts/fill_tables.py", "docs/results.md"),
    ],
)
def test_the_source_distribution_holds(name: str, sdist: set[str]) -> None:
    assert name in sdist


def test_the_source_distribution_holds_the_records(sdist: set[str]) -> None:
    assert {n for n in sdist if n.startswith("results/") and n.endswith("/results.jsonl")}
