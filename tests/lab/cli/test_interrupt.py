"""Ctrl-C: records of ended runs are kept and shown, and the error is one line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

#: Far more runs than are done before the signal comes.
SEEDS = ",".join(str(k) for k in range(400))
COMMAND = [
    *(sys.executable, "-m", "synthgrad", "compare", "--methods", "backprop", "--seeds", SEEDS, "--steps"),
    *("40", "--batch-size", "32", "--width", "8", "--layers", "2", "--threads", "1", "--device", "cpu"),
    "--quiet",
]
PATIENCE_S = 120  # against hanging for ever, not a claim

pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals")


@pytest.fixture
def _interruptible() -> Iterator[None]:
    """Make child processes react to SIGINT, even if these tests run in the background of a shell."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def _await_records(path: Path, process: subprocess.Popen[str]) -> None:
    """Wait for two lines, so that the command has certainly received the first record."""
    deadline = time.monotonic() + PATIENCE_S
    while not (path.exists() and path.read_bytes().count(b"\n") >= 2):
        assert process.poll() is None, "it ended before runs were recorded"
        assert time.monotonic() < deadline, "no runs were recorded"
        time.sleep(0.02)


def _everybody(process: subprocess.Popen[str]) -> None:
    os.killpg(process.pid, signal.SIGINT)  # Ctrl-C: a terminal signals the whole group


def _the_first(process: subprocess.Popen[str]) -> None:
    process.terminate()  # a job scheduler, or somebody's kill


def _gone(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return True
    return False


def _interrupt(out: Path, stop: Callable[[Any], None], *extra: str) -> tuple[int, str, str]:
    """Start the command, stop it after the first records, and return exit status and standard error; no process may remain."""
    environment = {k: v for k, v in os.environ.items() if k != "SYNTHGRAD_DATA"} | {"COLUMNS": "120"}
    process = subprocess.Popen(
        [*COMMAND, *extra, "--out", str(out)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,
    )
    with process:
        try:
            _await_records(out / "results.jsonl", process)
            stop(process)
            said, errors = process.communicate(timeout=PATIENCE_S)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    deadline = time.monotonic() + PATIENCE_S
    while not _gone(process.pid):
        assert time.monotonic() < deadline, "workers were left behind"
        time.sleep(0.05)
    return process.returncode, said, errors


@pytest.mark.slow(reason="starts the command line in processes of its own, several times")
@pytest.mark.usefixtures("_interruptible")
@pytest.mark.parametrize("stop", [_everybody, _the_first])
@pytest.mark.parametrize("jobs", ["1", "2"])
def test_interrupted_comparison(jobs: str, stop: Callable[[Any], None], tmp_path: Path) -> None:
    status, said, errors = _interrupt(tmp_path / "out", stop, "--jobs", jobs)
    lines = [line for line in errors.splitlines() if line]  # click ends the terminal's line "^C" first
    assert len(lines) == 1, errors
    assert lines[0].startswith("synthgrad: error: interrupted")
    assert "--resume" in lines[0]
    assert status == 130
    records = [
        json.loads(line) for line in (tmp_path / "out" / "results.jsonl").read_text("utf-8").splitlines()
    ]
    assert 2 <= len(records) < 400
    assert {r["status"] for r in records} == {"ok"}
    assert "backprop" in said
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert page.rstrip().endswith("</html>")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["report.html", "results.jsonl"]
