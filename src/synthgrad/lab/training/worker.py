"""What a process that was started for some runs does first, and what its parent keeps as it was."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import sys
import threading
import warnings
from collections.abc import Generator
from contextlib import contextmanager

from .snapshot import SnapshotWarning

__all__ = ["settle", "torchrun_tamed"]

_SIGNALS = [
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT") if hasattr(signal, name)
]


def settle() -> None:
    """End with the parent and at a signal, both without a traceback, and repeat no warning but those of snapshots."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_follow_parent, daemon=True).start()
    warnings.simplefilter("ignore")  # the first process has shown them
    warnings.simplefilter("always", SnapshotWarning)
    warnings.showwarning = _show


def _follow_parent() -> None:
    """End this process when the one that started it is gone, killed say: nobody would take its records."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _show(message: Warning | str, *rest: object, **more: object) -> None:
    sys.stderr.write(f"synthgrad: warning: {' '.join(str(message).split())}\n")
    sys.stderr.flush()


@contextmanager
def torchrun_tamed() -> Generator[None]:
    """Keep the parts of torchrun from logging what errors say too, and put signals and environment back after them."""
    before = {which: signal.getsignal(which) for which in _SIGNALS}
    environment, level = dict(os.environ), logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(level)
        for name in os.environ.keys() - environment.keys():
            if name.startswith("TORCHELASTIC"):
                del os.environ[name]
        for which, handler in before.items():
            if handler is not None:
                signal.signal(which, handler)
