"""The relay: reads frames from each worker's device, holds them, and writes them to the other's.

Its parent talks to it in lines: the first that it writes says where the namespaces are, or what went wrong; for each
line that it reads it writes its counts; at the end of its input it kills what is left in the namespaces, writes the
counts again and ends. So it also ends, and everything with it, when its parent is killed.
"""

from __future__ import annotations

import gc
import json
import math
import os
import select
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from .frames import LONGEST_BYTES, address_of, destination, is_for_all, wire_bytes
from .line import Line
from .ports import Port, open_ports
from .strays import stop_strays

__all__ = ["Relay", "main"]

_STDIN, _STDOUT = 0, 1
_MOST_READS = 16  # from one device before what is due is written: 1 MiB, about half a millisecond


class Relay:
    """Forwards frames by the address they are for; each ordered pair of workers has a line of its own.

    Args:
        taps: descriptors that do not block, by rank; reading one gives one frame.
        delay_s: from end to end.
        bytes_per_s: rate of each line; None for no limit.
        limit_bytes: how much may wait before a line.
    """

    def __init__(
        self, taps: Sequence[int], delay_s: float, bytes_per_s: float | None, limit_bytes: int
    ) -> None:
        self._ranks = {tap: rank for rank, tap in enumerate(taps)}
        # Lines that leave a rank by the address at their other end, and all with the device they lead to.
        self._leaving: list[dict[bytes, Line]] = [{} for _ in taps]
        self._lines: list[tuple[Line, int]] = []
        for source in range(len(taps)):
            for target, tap in enumerate(taps):
                if source != target:
                    line = Line(delay_s, bytes_per_s, limit_bytes)
                    self._leaving[source][address_of(target)] = line
                    self._lines.append((line, tap))
        self.num_frames = self.num_bytes = self.num_dropped = 0
        self.late_s = self.latest_s = 0.0

    def counts(self) -> dict[str, Any]:
        """Return what passed so far, and the CPU time of this process."""
        return {
            "num_frames": self.num_frames,
            "wire_bytes": self.num_bytes,
            "num_dropped": self.num_dropped,
            "late_s": self.late_s,
            "latest_s": self.latest_s,
            "cpu_s": time.process_time(),
        }

    def run(self, control: int) -> None:
        """Forward until ``control`` is at its end; sleeps whenever nothing is due and nothing has come.

        ``select`` sleeps to the microsecond, where ``epoll`` counts whole milliseconds and a timer's descriptor needs
        Python 3.13; with five descriptors at most it costs no more.
        """
        watched = [control, *self._ranks]
        while True:
            due = self.deliver()
            wait = None if due == math.inf else max(0.0, due - time.monotonic())
            for ready in select.select(watched, (), (), wait)[0]:
                if ready != control:
                    self.collect(ready)
                elif os.read(control, 4096):
                    say(self.counts())
                else:
                    return

    def collect(self, tap: int) -> None:
        """Read what has come from a device, and send each frame on its way."""
        leaving = self._leaving[self._ranks[tap]]
        now = time.monotonic()
        for _ in range(_MOST_READS):
            try:
                frame = os.read(tap, LONGEST_BYTES)
            except BlockingIOError:
                return
            line = leaving.get(destination(frame))
            if line is not None:
                self._offer(line, frame, now)
            elif is_for_all(frame):
                for line in leaving.values():
                    self._offer(line, frame, now)

    def _offer(self, line: Line, frame: bytes, now: float) -> None:
        size = wire_bytes(frame)
        if not line.offer(frame, size, now):
            self.num_dropped += 1
            return
        self.num_frames += 1
        self.num_bytes += size

    def deliver(self) -> float:
        """Write what is due; return when the next frame is, infinity if none is under way."""
        soonest = math.inf
        for line, tap in self._lines:
            now = time.monotonic()
            while (due := line.due()) <= now:
                try:
                    os.write(tap, line.pop())
                except OSError:  # the device is down, or the kernel short of memory
                    self.num_dropped += 1
                self.late_s += now - due
                self.latest_s = max(self.latest_s, now - due)
            soonest = min(soonest, due)
        return soonest


def main(argument: str) -> None:
    """Open the ports, and relay until the standard input ends.

    Args:
        argument: as JSON, ``num_ports``, ``settings`` (of `open_ports`), and the numbers of `Relay`.
    """
    given = json.loads(argument)
    try:
        ports: list[Port] = open_ports(given.pop("num_ports"), given.pop("settings"))
    except OSError as error:
        say({"error": str(error)})
        sys.exit(1)
    _come_first()
    gc.disable()  # nothing here makes cycles
    relay = Relay([port.tap for port in ports], **given)
    try:
        say({"namespaces": [port.namespace for port in ports]})
        relay.run(_STDIN)
    finally:
        stop_strays(port.namespace for port in ports)
        with suppress(BrokenPipeError):  # nobody is left to read it
            say(relay.counts())


def _come_first() -> None:
    """Run before the workers wherever the kernel permits it: they may keep every core busy, and late is longer.

    A nice value would not do: with autogroups it holds within one session only.
    """
    try:
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
    except OSError:  # some control groups have no share of real time
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, 0, -20)


def say(message: dict[str, Any]) -> None:
    """Write one line to the parent."""
    os.write(_STDOUT, json.dumps(message).encode() + b"\n")
