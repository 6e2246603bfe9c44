"""The relay: reads frames from each worker's device, delays them, and writes them to their destination's device.

It communicates with its parent in lines of JSON. The first line that it writes has the namespaces, or an error. For each
line that it reads it writes its counts. At the end of its input it kills all processes in the namespaces, writes the
counts once more and ends. So it also ends, with all workers, when its parent is killed.
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

from .frames import MAX_BYTES, address_of, destination, is_for_all, wire_bytes
from .line import Line
from .ports import Port, open_ports
from .strays import stop_strays

__all__ = ["Relay", "main"]

_STDIN, _STDOUT = 0, 1
_MAX_READS = 16  # reads from one device before due frames are written: 1 MiB, about half a millisecond


class Relay:
    """Forwards frames by their destination address; each ordered pair of workers has its own line.

    Args:
        taps: non-blocking descriptor of each worker's device, by rank; each read returns one frame.
        delay_s: delay from end to end.
        bytes_per_s: rate of a line to a higher rank, and to a lower one; None for no limit.
        limit_bytes: size of the queue before each.
        jitter_s: what is added to the delay of a frame, at most.
    """

    def __init__(
        self,
        taps: Sequence[int],
        delay_s: float,
        bytes_per_s: tuple[float | None, float | None],
        limit_bytes: tuple[int, int],
        jitter_s: float = 0.0,
    ) -> None:
        self._ranks = {tap: rank for rank, tap in enumerate(taps)}
        # The lines that leave each rank, by destination address; and all lines with the device at their end.
        self._leaving: list[dict[bytes, Line]] = [{} for _ in taps]
        self._lines: list[tuple[Line, int]] = []
        for source in range(len(taps)):
            for target, tap in enumerate(taps):
                if source != target:
                    way = int(source > target)
                    line = Line(delay_s, bytes_per_s[way], limit_bytes[way], jitter_s, seed=len(self._lines))
                    self._leaving[source][address_of(target)] = line
                    self._lines.append((line, tap))
        self.num_frames = self.num_bytes = self.num_dropped = 0
        self.late_s = self.latest_s = 0.0

    def counts(self) -> dict[str, Any]:
        """Return the counts of the traffic so far, and the CPU time of this process."""
        return {
            "num_frames": self.num_frames,
            "wire_bytes": self.num_bytes,
            "num_dropped": self.num_dropped,
            "late_s": self.late_s,
            "latest_s": self.latest_s,
            "cpu_s": time.process_time(),
        }

    def run(self, control: int) -> None:
        """Forward frames until the descriptor ``control`` reaches its end; sleep while there is nothing to do.

        ``select`` sleeps with a precision of microseconds, while ``epoll`` counts whole milliseconds and a timer's
        descriptor needs Python 3.13. With few descriptors it costs no more.
        """
        watched = [control, *self._ranks]
        while True:
            due = self.deliver()
            wait = None if due == math.inf else max(0.0, due - time.monotonic())
            for ready in select.select(watched, (), (), wait)[0]:
                if ready != control:
                    self.collect(ready)
                elif os.read(control, 4096):
                    send_line(self.counts())
                else:
                    return

    def collect(self, tap: int) -> None:
        """Read the frames that wait at a device, and add each to its line."""
        leaving = self._leaving[self._ranks[tap]]
        now = time.monotonic()
        for _ in range(_MAX_READS):
            try:
                frame = os.read(tap, MAX_BYTES)
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
        """Write all frames that are due; return when the next one is due, or infinity if there is none."""
        soonest = math.inf
        for line, tap in self._lines:
            now = time.monotonic()
            while (due := line.due()) <= now:
                try:
                    os.write(tap, line.pop())
                except OSError:  # the device is down, or the kernel is short of memory
                    self.num_dropped += 1
                self.late_s += now - due
                self.latest_s = max(self.latest_s, now - due)
            soonest = min(soonest, due)
        return soonest


def main(argument: str) -> None:
    """Open the ports, and forward frames until the standard input ends.

    Args:
        argument: JSON with ``num_ports`` and ``settings`` for `open_ports`, and the numbers for `Relay`.
    """
    given = json.loads(argument)
    try:
        ports: list[Port] = open_ports(given.pop("num_ports"), given.pop("settings"))
    except OSError as error:
        send_line({"error": str(error)})
        sys.exit(1)
    _raise_priority()
    gc.disable()  # the relay creates no reference cycles, and a collection would delay frames
    relay = Relay([port.tap for port in ports], **given)
    try:
        send_line({"namespaces": [port.namespace for port in ports]})
        relay.run(_STDIN)
    finally:
        stop_strays(port.namespace for port in ports)
        with suppress(BrokenPipeError):  # the parent has been killed
            send_line(relay.counts())


def _raise_priority() -> None:
    """Get a higher priority than the workers where the kernel permits it.

    The workers may keep every core busy, and a late relay would lengthen the emulated delay. A nice value is not enough,
    because with autogroups it counts within one session only.
    """
    try:
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
    except OSError:  # some control groups have no real-time budget
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, 0, -20)


def send_line(message: dict[str, Any]) -> None:
    """Write one line of JSON to the parent."""
    os.write(_STDOUT, json.dumps(message).encode() + b"\n")
