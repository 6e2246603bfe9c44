"""A results folder has one writer; that of a dead one is free."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from synthgrad.core import ConfigError
from synthgrad.lab.bench.base import choose
from synthgrad.lab.bench.base import sweep as bench_sweep
from synthgrad.lab.bench.declarations import STEP
from synthgrad.lab.bench.step import StepBench
from synthgrad.lab.records import FILE, LOCK, lock, locked
from synthgrad.lab.training.sweep import Progress, Sweep

HOLDER = """
import sys, pathlib
from synthgrad.lab.records import locked
with locked(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.readline()
"""


def test_a_folder_that_is_held_is_refused_and_free_again_afterwards(tmp_path: Path) -> None:
    with locked(tmp_path):
        with pytest.raises(ConfigError, match=rf"is in use by process {os.getpid()}, since 2\d\d\d-"):
            locked(tmp_path).__enter__()
        assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()
    assert not (tmp_path / LOCK).exists()
    with locked(tmp_path):
        pass


def test_it_is_free_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), locked(tmp_path):
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())


def test_runs_and_benchmarks_both_refuse_before_they_write(tmp_path: Path) -> None:
    bench = StepBench()
    with locked(tmp_path):
        with pytest.raises(ConfigError, match="is in use by process"):
            next(Sweep([], tmp_path).records(Progress()), None)
        with pytest.raises(ConfigError, match="is in use by process"):
            next(bench_sweep(bench, choose(STEP, "smoke"), tmp_path))
    assert (tmp_path / FILE).read_bytes() == b""


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / LOCK).mkdir()
    with pytest.raises(ConfigError, match="cannot be locked"):
        locked(tmp_path).__enter__()


def test_without_the_operating_systems_lock_the_name_in_the_file_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "fcntl", None)
    (tmp_path / LOCK).write_text(json.dumps({"pid": os.getppid(), "since": "today"}))
    with pytest.raises(ConfigError, match=f"process {os.getppid()}, since today"):
        locked(tmp_path).__enter__()
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    (tmp_path / LOCK).write_text(json.dumps({"pid": ended.pid, "since": "today"}))
    with locked(tmp_path):
        assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()


@pytest.mark.slow(reason="starts a program that loads PyTorch")
@pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals")
def test_the_lock_of_a_killed_process_is_taken_over(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(ConfigError, match=f"process {holder.pid}, since"):
            locked(tmp_path).__enter__()
        holder.kill()
        holder.wait()
        assert (tmp_path / LOCK).exists()  # the file stays, the lock does not
        with locked(tmp_path):
            pass
        holder.stdin.close() if holder.stdin else None
