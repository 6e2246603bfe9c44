"""Folders with spaces in their names, and homes that are not writable: everything works without a message."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.lab.cli.helpers import call

SMALL = [
    *("compare", "--steps", "3", "--batch-size", "32", "--device", "cpu", "--threads", "1", "--quiet"),
    *("--methods", "backprop,cdni"),
]
OWN = """
from torch import nn


def small():
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 8), nn.ReLU(), nn.Linear(8, 10))
"""
#: Set by the user's session or by these tests' own process; a bare account has none of them.
FOLDERS = (
    "XDG_CACHE_HOME",
    "XDG_CONFIG_HOME",
    "XDG_DATA_HOME",
    "MPLCONFIGDIR",
    "SYNTHGRAD_DATA",
    "PYTHONPATH",
)


def start(
    folder: Path, *arguments: str, home: str | None = None, temporary: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run the program in a folder, with its own home folder or none."""
    environment = {k: v for k, v in os.environ.items() if k not in FOLDERS}
    if home is not None:
        environment["HOME"] = home
    if temporary is not None:
        environment["TMPDIR"] = str(temporary)
    return subprocess.run(
        [sys.executable, "-m", "synthgrad", *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        encoding="utf-8",
        timeout=120,
        check=False,
    )


@pytest.fixture
def spaced(tmp_path: Path) -> Path:
    folder = tmp_path / "my own work"
    folder.mkdir()
    return folder


@pytest.fixture
def homeless(tmp_path: Path) -> str:
    """Return a home that not even root can create or write, because its parent is a file."""
    (tmp_path / "file").write_text("")
    return str(tmp_path / "file" / "home")


@pytest.mark.slow(reason="starts the command line in processes of its own, several times")
def test_spaces_everywhere(spaced: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (spaced / "my_networks.py").write_text(OWN)
    own = ["--model", "my_networks:small", "--jobs", "2", "--out", "first results"]
    done = start(spaced, *SMALL, *own)
    assert (done.returncode, done.stderr) == (0, "")
    assert "first results/report.html" in done.stdout.replace(os.sep, "/")
    lines = (spaced / "first results" / "results.jsonl").read_text("utf-8").splitlines()
    assert [json.loads(line)["status"] for line in lines] == ["ok", "ok"]
    monkeypatch.chdir(spaced)
    assert call("report", "first results", "--out", "all in one.html") == 0
    assert (spaced / "all in one.html").read_text("utf-8").rstrip().endswith("</html>")


@pytest.mark.slow(reason="starts the command line in processes of its own, several times")
def test_a_home_that_cannot_be_written(spaced: Path, homeless: str, tmp_path: Path) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    small = ["--width", "8", "--layers", "2"]
    done = start(spaced, *SMALL, *small, "--out", "here", home=homeless, temporary=temporary)
    assert (done.returncode, done.stderr) == (0, "")
    assert sorted(p.name for p in (spaced / "here").iterdir()) == ["report.html", "results.jsonl"]
    assert "<svg" in (spaced / "here" / "report.html").read_text("utf-8")
    left = [p.name for p in temporary.iterdir() if "torch" not in p.name]  # PyTorch leaves one of its own
    assert left == [], "matplotlib's folder is gone at the end"


@pytest.mark.slow(reason="starts the command line in processes of its own, several times")
def test_a_cache_that_cannot_be_written(spaced: Path, homeless: str) -> None:
    done = start(spaced, *SMALL, "--data", "mnist", "--out", "here", home=homeless)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("synthgrad: error: mnist/train-images-idx3-ubyte.gz: not found")
    assert f"the cache folder {homeless}" in line
    assert "--data-dir or SYNTHGRAD_DATA" in line
    assert done.stdout == ""
    assert list(spaced.iterdir()) == []


def test_matplotlib_is_loaded_without_a_change_of_the_environment(homeless: str) -> None:
    code = (
        "import os, synthgrad.lab.report.plot; assert 'MPLCONFIGDIR' not in os.environ; "
        "import matplotlib; print(matplotlib.get_configdir(), matplotlib.get_backend(), sep='\\n')"
    )
    environment = {k: v for k, v in os.environ.items() if k not in FOLDERS} | {"HOME": homeless}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60, check=True
    )
    folder, backend = done.stdout.splitlines()
    assert (backend.lower(), done.stderr) == ("agg", "")
    assert Path(folder).parent == Path(tempfile.gettempdir())
    assert not Path(folder).exists()
