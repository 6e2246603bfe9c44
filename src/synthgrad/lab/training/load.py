"""Measures how busy other programs keep the machine, because times taken under load are unreliable."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from pathlib import Path

from ..records import Record

__all__ = ["Load", "warning_of"]

_PROC = Path("/proc")
#: Number of processors that other programs may keep busy before times count as unreliable; the report uses the same.
_MOST = 0.5
#: The shortest time to measure over; the kernel counts in hundredths of a second.
_LEAST_S = 0.2
#: Where the fields of /proc/PID/stat begin after the name: state is the first, the parent the second.
_PARENT, _TIMES = 1, slice(11, 15)


class Load:
    """Measures how many processors other programs keep busy, from its creation on.

    On Linux it subtracts the CPU time of this process and its children from that of all programs, on the processors that
    this process may use. On other systems, and over a short time, it has the load average of the minute before.
    """

    def __init__(self) -> None:
        self._average = round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None
        self._start = time.perf_counter()
        self._cpus = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set[int]()
        self._before = _others_s(self._cpus)

    def so_far(self) -> float | None:
        """Return the mean number of processors that other programs have kept busy so far; None if it is not known."""
        measured = self.measured()
        return self._average if measured is None else measured

    def measured(self) -> float | None:
        """Return the same without the load average, in which the program itself counts; None if it was not measured."""
        elapsed_s, now = time.perf_counter() - self._start, _others_s(self._cpus)
        if self._before is None or now is None or elapsed_s < _LEAST_S:
            return None
        return round(max(0.0, now - self._before) / elapsed_s, 2)


def warning_of(records: Iterable[Record]) -> str | None:
    """Return a warning about records whose times were measured on a busy machine; None if there are none."""
    timed = [r for r in records if r.metrics.step_ms_median is not None]
    loads = [load for r in timed if (load := r.env.other_load or 0.0) > _MOST]
    if not loads:
        return None
    return (
        f"other programs kept up to {max(loads):.1f} processors busy while {len(loads)} of {len(timed)} lines were "
        "measured: times and ratios taken under load are unreliable; measure again on an idle machine"
    )


def _others_s(cpus: set[int]) -> float | None:
    """Return the CPU time of other programs on some processors so far, in seconds; None if it is not known."""
    try:
        ticks = os.sysconf("SC_CLK_TCK")
        lines = (_PROC / "stat").read_text().splitlines()
        own = _own_ticks(os.getpid())
    except (OSError, ValueError, AttributeError):
        return None
    busy = 0
    for line in lines:
        name, *fields = line.split()
        if name.removeprefix("cpu").isdecimal() and int(name.removeprefix("cpu")) in cpus:
            user, nice, system, _, _, irq, soft_irq, stolen = map(int, fields[:8])
            busy += user + nice + system + irq + soft_irq + stolen
    return (busy - own) / ticks if busy else None


def _own_ticks(root: int) -> int:
    """Return the CPU time of a process and all its descendants, including those that have ended, in clock ticks."""
    parents: dict[int, int] = {}
    times: dict[int, int] = {}
    for path in _PROC.glob("[0-9]*/stat"):
        try:
            fields = path.read_text(errors="replace").rpartition(")")[2].split()
        except OSError:  # it has ended meanwhile
            continue
        pid = int(path.parent.name)
        parents[pid] = int(fields[_PARENT])
        times[pid] = sum(map(int, fields[_TIMES]))
    total, found = 0, {root}
    while found:
        total += sum(times.get(pid, 0) for pid in found)
        found = {pid for pid, parent in parents.items() if parent in found}
    return total
