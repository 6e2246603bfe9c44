"""Kills processes that still run in the workers' namespaces when the network is removed."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Collection, Iterable
from contextlib import suppress

__all__ = ["identity", "stop_strays"]

_TIMEOUT_S = 5.0


def identity(namespace: int | str) -> tuple[int, int]:
    """Return device and inode of a namespace, which identify it; it is given by descriptor or path."""
    status = os.stat(namespace)
    return status.st_dev, status.st_ino


def stop_strays(namespaces: Iterable[int]) -> None:
    """Kill all processes in these namespaces, and wait up to five seconds until they are gone.

    Args:
        namespaces: descriptors of the namespaces; the caller's own is skipped.
    """
    wanted = {identity(namespace) for namespace in namespaces} - {identity("/proc/self/ns/net")}
    until = time.monotonic() + _TIMEOUT_S
    while (found := _processes_in(wanted)) and time.monotonic() < until:
        for process in found:
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        time.sleep(0.01)


def _processes_in(wanted: Collection[tuple[int, int]]) -> list[int]:
    found: list[int] = []
    for name in os.listdir("/proc"):
        # A process that has ended has no namespace, whether it is reaped or not.
        with suppress(OSError):
            if name.isdigit() and identity(f"/proc/{name}/ns/net") in wanted:
                found.append(int(name))
    return found
