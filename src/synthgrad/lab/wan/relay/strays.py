"""Processes that still run in the workers' namespaces when these are taken down."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Collection, Iterable
from contextlib import suppress

__all__ = ["identity", "stop_strays"]

_PATIENCE_S = 5.0


def identity(namespace: int | str) -> tuple[int, int]:
    """Return what tells a namespace, given by descriptor or path, from every other that exists."""
    found = os.stat(namespace)
    return found.st_dev, found.st_ino


def stop_strays(namespaces: Iterable[int]) -> None:
    """Kill what runs in these namespaces, and wait until it is gone, five seconds at most.

    Args:
        namespaces: descriptors; none may be the caller's own namespace.
    """
    wanted = {identity(namespace) for namespace in namespaces} - {identity("/proc/self/ns/net")}
    until = time.monotonic() + _PATIENCE_S
    while (found := _inside(wanted)) and time.monotonic() < until:
        for process in found:
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        time.sleep(0.01)


def _inside(wanted: Collection[tuple[int, int]]) -> list[int]:
    found: list[int] = []
    for name in os.listdir("/proc"):
        # A process that has ended, reaped or not, has no namespace any more.
        with suppress(OSError):
            if name.isdigit() and identity(f"/proc/{name}/ns/net") in wanted:
                found.append(int(name))
    return found
