"""The relay's process, seen from the program that started it."""

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

# Isolated (-I, -S): the relay needs no site packages, and no variable of the environment may change what it imports.
_START = "import sys; sys.path.insert(0, sys.argv[1]); from relay.main import main; main(sys.argv[2])"
_PATIENCE_S = 20.0


@dataclass(frozen=True)
class Counts:
    """What passed through the relay since it began, over all lines.

    Args:
        num_frames: frames, or bundles of TCP segments, that were sent on.
        wire_bytes: their bytes, with the Ethernet headers of every segment.
        num_dropped: those that found a full queue, or a device that was down.
        late_s: sum over the frames of the time that they were late, for want of a processor.
        latest_s: the most that one of them was late.
        cpu_s: CPU time of the relay, in it the kernel's work for frames that it delivers.
    """

    num_frames: int = 0
    wire_bytes: int = 0
    num_dropped: int = 0
    late_s: float = 0.0
    latest_s: float = 0.0
    cpu_s: float = 0.0


class RelayProcess:
    """Starts the relay, asks it for its counts, and stops it.

    Args:
        link: what every pair of workers gets.
        num_workers: how many.
        settings: of the kernel, for each namespace, by path below ``/proc/sys``.

    Raises:
        ConfigError: if the kernel does not permit it.
        LinkError: if it ended or did not answer.
    """

    def __init__(self, link: Link, num_workers: int, settings: Mapping[str, str]) -> None:
        given = {
            "num_ports": num_workers,
            "settings": dict(settings),
            "delay_s": link.delay_s,
            "bytes_per_s": link.bytes_per_s,
            "limit_bytes": link.queue_bytes,
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
            start_new_session=True,  # Ctrl-C is for us: the link stays up until the workers are gone
        )
        try:
            said = self._line()
            if "error" in said:
                raise ConfigError(
                    f"an emulated link is not permitted here: {said['error']}; "
                    "run as root with CAP_SYS_ADMIN, CAP_NET_ADMIN and a writable /proc/sys, or leave out --link"
                )
            self.namespaces: list[str] = [
                f"/proc/{self._process.pid}/fd/{number}" for number in said["namespaces"]
            ]
        except BaseException:
            self.close()
            raise

    @property
    def pid(self) -> int:
        """The number of the process."""
        return self._process.pid

    def counts(self) -> Counts:
        """Return the counts so far; the last ones once it is closed.

        Raises:
            LinkError: if the relay ended or does not answer.
        """
        if not self._closed:
            assert self._process.stdin is not None
            try:
                self._process.stdin.write(b"\n")
            except BrokenPipeError:
                raise self._ended() from None
            self._last = Counts(**self._line())
        return self._last

    def close(self) -> None:
        """End the relay; it kills what still runs in the namespaces. Again does nothing."""
        if self._closed:
            return
        self._closed = True
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.close()
            self._last = Counts(**self._line())
            self._process.wait(_PATIENCE_S)
        except (LinkError, TypeError, subprocess.TimeoutExpired):
            pass  # it ended by itself, or hangs: the last counts stay
        finally:
            self._process.kill()
            self._process.wait()
            self._process.stdout.close()

    def _line(self) -> dict[str, Any]:
        """Return the next line that the relay writes."""
        assert self._process.stdout is not None
        until = time.monotonic() + _PATIENCE_S
        while b"\n" not in self._unread:
            if not select.select([self._process.stdout], (), (), max(0.0, until - time.monotonic()))[0]:
                raise LinkError(
                    f"the emulated link did not answer for {_PATIENCE_S:g} s; give it a free processor"
                )
            found = os.read(self._process.stdout.fileno(), 65_536)
            if not found:
                raise self._ended()
            self._unread += found
        line, _, self._unread = self._unread.partition(b"\n")
        return json.loads(line)

    def _ended(self) -> LinkError:
        status = self._process.wait()
        return LinkError(
            f"the emulated link ended early (exit status {status}); what was measured through it is void, run it again"
        )
