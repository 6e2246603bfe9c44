"""Starts and stops the relay's process, and reads its counts."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...core import ConfigError
from .link import Link, LinkError

__all__ = ["Counts", "RelayProcess"]

# Isolated (-I, -S), so that the environment cannot change what the relay imports; it needs no site packages.
_START = "import sys; sys.path.insert(0, sys.argv[1]); from relay.main import main; main(sys.argv[2])"
_TIMEOUT_S = 20.0


@dataclass(frozen=True)
class Counts:
    """Counts of the traffic through the relay since it began, over all lines.

    Args:
        num_frames: number of frames, or bundles of TCP segments, that were forwarded.
        wire_bytes: size of these frames in bytes, including the Ethernet headers of every segment.
        num_dropped: number of frames dropped because a queue was full or a device was down.
        late_s: sum over all frames of the time that the relay delivered them late, because it had no free processor.
        latest_s: the longest such delay of a single frame.
        cpu_s: CPU time of the relay, including the kernel's work to deliver frames.
    """

    num_frames: int = 0
    wire_bytes: int = 0
    num_dropped: int = 0
    late_s: float = 0.0
    latest_s: float = 0.0
    cpu_s: float = 0.0


class RelayProcess:
    """A running relay.

    Args:
        link: the link between every two workers.
        num_workers: number of workers.
        settings: kernel settings of each namespace, by path below ``/proc/sys``.

    Attributes:
        namespaces: path of each worker's network namespace, by rank.

    Raises:
        ConfigError: if the kernel does not permit it.
        LinkError: if the relay ends or does not answer.
    """

    def __init__(self, link: Link, num_workers: int, settings: Mapping[str, str]) -> None:
        given = {
            "num_ports": num_workers,
            "settings": dict(settings),
            "delay_s": link.delay_s,
            "jitter_s": link.jitter_ms * 1e-3,
            "bytes_per_s": (link.bytes_per_s, link.down_bytes_per_s),
            "limit_bytes": (link.queue_bytes, link.down_queue_bytes),
        }
        here = str(Path(__file__).resolve().parent)
        self._unread = b""
        self._last = Counts()
        self._closed = False
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _START, here, json.dumps(given)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            start_new_session=True,  # Ctrl-C must not reach the relay: the link stays up until the workers have ended
        )
        try:
            answer = self._read_line()
            if "error" in answer:
                raise ConfigError(
                    f"an emulated link is not permitted here: {answer['error']}; "
                    "run as root with CAP_SYS_ADMIN, CAP_NET_ADMIN and a writable /proc/sys, or leave out --link"
                )
            self.namespaces: list[str] = [
                f"/proc/{self._process.pid}/fd/{number}" for number in answer["namespaces"]
            ]
        except BaseException:
            self.close()
            raise

    @property
    def pid(self) -> int:
        """The process ID."""
        return self._process.pid

    def counts(self) -> Counts:
        """Return the counts so far, or the last ones after `close`.

        Raises:
            LinkError: if the relay has ended or does not answer.
        """
        if not self._closed:
            assert self._process.stdin is not None
            try:
                self._process.stdin.write(b"\n")
            except BrokenPipeError:
                raise self._error_at_end() from None
            self._last = Counts(**self._read_line())
        return self._last

    def close(self) -> None:
        """End the relay, which kills all processes in the namespaces. A second call does nothing."""
        if self._closed:
            return
        self._closed = True
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.close()
            self._last = Counts(**self._read_line())
            self._process.wait(_TIMEOUT_S)
        except (LinkError, TypeError, subprocess.TimeoutExpired):
            pass  # the relay has ended by itself or hangs, so the last counts stay
        finally:
            self._process.kill()
            self._process.wait()
            self._process.stdout.close()

    def _read_line(self) -> dict[str, Any]:
        """Return the next line that the relay writes."""
        assert self._process.stdout is not None
        until = time.monotonic() + _TIMEOUT_S
        while b"\n" not in self._unread:
            if not select.select([self._process.stdout], (), (), max(0.0, until - time.monotonic()))[0]:
                raise LinkError(
                    f"the emulated link did not answer for {_TIMEOUT_S:g} s; leave a processor free for it"
                )
            found = os.read(self._process.stdout.fileno(), 65_536)
            if not found:
                raise self._error_at_end()
            self._unread += found
        line, _, self._unread = self._unread.partition(b"\n")
        return json.loads(line)

    def _error_at_end(self) -> LinkError:
        status = self._process.wait()
        return LinkError(
            f"the emulated link ended early (exit status {status}), so the measurements are not valid; run it again"
        )
