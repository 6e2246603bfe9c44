"""A run on stages that is killed or interrupted resumes, and ends as it would have ended otherwise."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest

from synthgrad.lab.training.snapshot import INTERVAL_VARIABLE
from tests.lab.cli.helpers import call, records_in

PATIENCE_S = 120  # against hanging for ever, not a claim
SHORT = [
    *("compare", "--methods", "delayed", "--steps", "60", "--batch-size", "32", "--width", "16"),
    *("--threads", "1", "--device", "cpu", "--quiet"),
]

pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals")


def _gone(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return True
    return False


def _stopped(out: Path, how: signal.Signals, temporary: Path) -> tuple[int, str]:
    """Start a run, stop it after its first two snapshots, wait for its last process; return status and errors."""
    process = subprocess.Popen(
        [sys.executable, "-m", "synthgrad", *SHORT, "--engine", "stages", "--out", str(out)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, INTERVAL_VARIABLE: "0", "TMPDIR": str(temporary)},
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    deadline = time.monotonic() + PATIENCE_S
    with process:
        try:
            while len(list(out.glob("snapshots/*-step*.pt"))) < 4:
                assert process.poll() is None, process.communicate()[1]
                assert time.monotonic() < deadline, "no snapshots were written"
                time.sleep(0.01)
            if how == signal.SIGINT:
                os.killpg(process.pid, how)  # Ctrl-C: a terminal signals the whole group
            else:
                process.send_signal(how)
            errors = process.communicate(timeout=PATIENCE_S)[1]
            while not _gone(process.pid):
                assert time.monotonic() < deadline, "processes were left behind"
                time.sleep(0.05)
        finally:
            if not _gone(process.pid):
                os.killpg(process.pid, signal.SIGKILL)
    return process.returncode, errors


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return the record of the same run in one process, with the same lags and without interruption."""
    out = tmp_path_factory.mktemp("whole")
    assert call(*SHORT, "--at", "layer2", "--out", out) == 0
    (record,) = records_in(out)
    return record


@pytest.mark.slow(reason="starts a pipeline of processes, twice for each signal")
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_stopped_run_on_stages_goes_on_to_the_same_end(
    how: signal.Signals,
    whole: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out, temporary = tmp_path / "out", tmp_path / "temporary"
    temporary.mkdir()
    status, errors = _stopped(out, how, temporary)
    if how != signal.SIGKILL:
        assert status == 130
        lines = [line for line in errors.splitlines() if line]
        assert len(lines) == 1, errors
        assert lines[0].startswith("synthgrad: error: interrupted")
        assert not list(temporary.iterdir())
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    assert call(*SHORT, "--engine", "stages", "--out", out, "--resume") == 0
    shown = capsys.readouterr()
    assert "warning" not in shown.err, shown.err
    (record,) = records_in(out)
    assert record["status"] == "ok"
    assert 0 < record["resumed_at"][0] <= 60
    assert record["weights_sha256"] == whole["weights_sha256"]
    assert [p["train_loss"] for p in record["curve"]] == [p["train_loss"] for p in whole["curve"]]
    assert record["metrics"]["test_loss"] == whole["metrics"]["test_loss"]
    assert sorted(p.name for p in out.iterdir()) == ["report.html", "results.jsonl"]
