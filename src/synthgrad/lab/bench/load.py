"""How busy other programs keep the machine while something is measured: figures taken under load are unreliable."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..records import Record

__all__ = ["Load", "warning_of"]

_PROC = Path("/proc")
#: Share of the CPUs that other programs may take before figures count as unreliable.
_MOST = 0.1
#: A shorter span says nothing: the kernel counts in hundredths of a second.
_LEAST_S = 0.2
#: Where the fields of /proc/PID/stat begin after the name: state is the first, the parent the second.
_PARENT, _TIMES = 1, slice(11, 15)


class Load:
    """Watches the machine from now on.

    On Linux it knows the CPU time of all programs, on the CPUs that this process may use, and that of this process and
    its children; the difference is that of others. Elsewhere it knows the load average before the measurement.
    """

    def __init__(self) -> None:
        self._average = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
        self._start = time.perf_counter()
        self._cpus = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set[int]()
        self._before = _others_s(self._cpus)

    def so_far(self) -> dict[str, Any]:
        """Return what ``env`` tells of it.

        ``load_average`` is that of the minute before; ``others_cpus`` the mean number of CPUs that other programs have
        kept busy since; ``cpus`` the number that there are. What nobody knows is left out.
        """
        found: dict[str, Any] = {}
        if self._average is not None:
            found["load_average"] = round(self._average, 2)
        elapsed_s, now = time.perf_counter() - self._start, _others_s(self._cpus)
        if self._before is not None and now is not None and elapsed_s >= _LEAST_S:
            found["others_cpus"] = round(max(0.0, now - self._before) / elapsed_s, 2)
            found["cpus"] = len(self._cpus)
        return found


def warning_of(records: Iterable[Record]) -> str | None:
    """Return one line about the records whose times were measured on a busy machine; None if there are none."""
    timed = [r for r in records if r.metrics.step_ms_median is not None]
    busy = [r for r in timed if _is_busy(r)]
    if not busy:
        return None
    most = max(float(r.env.get("others_cpus", 0.0)) for r in busy)
    return (
        f"other programs kept up to {most:.1f} of {busy[0].env.get('cpus')} CPUs busy while {len(busy)} of {len(timed)} "
        "lines were measured: times and ratios taken under load are unreliable; measure again on an idle machine"
    )


def _is_busy(record: Record) -> bool:
    others, cpus = record.env.number("others_cpus"), record.env.number("cpus")
    return others is not None and cpus is not None and others > _MOST * cpus


def _others_s(cpus: set[int]) -> float | None:
    """Return the seconds that other programs have had so far on some CPUs; None where nobody knows."""
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
    """Return the CPU time of a process and all below it, those included that have ended and been waited for."""
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
