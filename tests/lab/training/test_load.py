"""How busy others keep the machine: worked out from the kernel's figures, and told in one line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from synthgrad.lab.records import Env, Metrics, Record
from synthgrad.lab.training import load
from synthgrad.lab.training.load import Load, warning_of

OURS, CHILD, THEIRS = 7, 8, 9


class Machine:
    """A kernel's files, with CPU times in ticks that a test advances; time goes by a second at a look."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.now = folder, 0.0
        self.ticks = {OURS: 100, CHILD: 50, THEIRS: 1000}
        self.stolen = self.elsewhere = 0
        monkeypatch.setattr(load, "_PROC", folder)
        monkeypatch.setattr(load.os, "getpid", lambda: OURS)
        monkeypatch.setattr(load.os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
        monkeypatch.setattr(load.os, "sysconf", lambda _: 100)
        monkeypatch.setattr(load.os, "getloadavg", lambda: (1.234, 0.0, 0.0))
        monkeypatch.setattr(load.time, "perf_counter", lambda: self.now)
        self.write()

    def write(self) -> None:
        parents = {OURS: 1, CHILD: OURS, THEIRS: 1}
        for pid, ticks in self.ticks.items():
            (self.folder / str(pid)).mkdir(exist_ok=True)
            # A name may hold anything, a bracket and spaces too.
            text = f"{pid} (a ) name) S {parents[pid]} " + "0 " * 9 + f"{ticks} 0 0 0 0"
            (self.folder / str(pid) / "stat").write_text(text)
        busy = sum(self.ticks.values())
        (self.folder / "stat").write_text(
            f"cpu  1 1 1 1 1 1 1 1\ncpu0 {busy} 0 0 5000 9 0 0 0 0 0\ncpu1 0 0 0 5000 9 0 0 {self.stolen} 0 0\n"
            f"cpu2 {self.elsewhere} 0 0 5000 0 0 0 0 0 0\nintr 5\n"
        )

    def later(self, seconds: float, **ticks: int) -> None:
        self.now += seconds
        self.ticks[OURS] += ticks.get("ours", 0)
        self.ticks[CHILD] += ticks.get("child", 0)
        self.ticks[THEIRS] += ticks.get("theirs", 0)
        self.stolen += ticks.get("stolen", 0)
        self.elsewhere += ticks.get("elsewhere", 0)
        self.write()


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(tmp_path, monkeypatch)


def test_what_others_take_is_told_apart_from_what_we_take(machine: Machine) -> None:
    watch = Load()
    machine.later(2.0, ours=150, child=50, theirs=100)
    assert watch.so_far() == 0.5


def test_what_another_machine_steals_counts_and_other_cpus_do_not(machine: Machine) -> None:
    watch = Load()
    machine.later(1.0, ours=100, stolen=30, elsewhere=500)
    assert watch.so_far() == 0.3


def test_of_a_short_span_the_average_before_it_is_told(machine: Machine) -> None:
    watch = Load()
    machine.later(0.1, theirs=10)
    assert watch.so_far() == 1.23


def test_where_there_is_no_such_file_the_average_is_told(machine: Machine) -> None:
    (machine.folder / "stat").unlink()
    watch = Load()
    machine.later(1.0)
    (machine.folder / "stat").unlink()
    assert watch.so_far() == 1.23


def test_nothing_is_told_where_nobody_knows(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(load.os, "getloadavg")
    monkeypatch.delattr(load.os, "sysconf")
    watch = Load()
    machine.later(1.0)
    assert watch.so_far() is None


@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's figures")
def test_children_that_have_ended_are_ours() -> None:
    before = load._own_ticks(load.os.getpid())
    subprocess.run([sys.executable, "-c", "import time\nwhile time.process_time() < 0.3: pass"], check=True)
    assert load._own_ticks(load.os.getpid()) - before >= 25


def record(other_load: float | None, step_ms: float | None = 1.0) -> Record:
    env = {} if other_load is None else {"other_load": other_load}
    return Record(
        experiment="bench/step", method="a", metrics=Metrics({"step_ms_median": step_ms}), env=Env(env)
    )


def test_lines_that_were_measured_under_load_are_told_in_one_line() -> None:
    said = warning_of([record(0.1), record(0.7), record(1.25), record(None)])
    assert said is not None
    assert said.startswith("other programs kept up to 1.2 processors busy while 2 of 4 lines were measured")
    assert "unreliable" in said
    assert "\n" not in said


def test_there_is_no_warning_without_load_or_without_times() -> None:
    assert warning_of([record(0.1), record(0.5), record(None)]) is None
    assert warning_of([record(1.5, step_ms=None)]) is None
