"""Holds the store of stages that go on without each other."""

from __future__ import annotations

import signal
from contextlib import suppress

from ...engines.stages import serve_store

__all__ = ["hold_store"]


def hold_store(host: str, port: int) -> int:
    """Serve until the process is interrupted or told to end; return the exit status.

    Raises:
        ConfigError: if nothing can listen at the address.
    """
    store = serve_store(host, port)
    print(f"store at {host}:{port}; Ctrl-C ends it", flush=True)
    with suppress(KeyboardInterrupt):
        signal.pause()
    del store
    return 0
