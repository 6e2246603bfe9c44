"""Sets up the worker processes of runs, and restores what torchrun's parts change in the parent."""

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

__all__ = ["quiet_torchrun", "set_up_worker"]

_SIGNALS = [
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT") if hasattr(signal, name)
]


def set_up_worker() -> None:
    """Prepare this process to train runs for its parent.

    The process ends at a signal, or when its parent ends, without a traceback. It shows no warnings, because the parent
    has shown them, except those about snapshots.
    """
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_follow_parent, daemon=True).start()
    warnings.simplefilter("ignore")
    warnings.simplefilter("always", SnapshotWarning)
    warnings.showwarning = _show


def _follow_parent() -> None:
    """End this process when its parent has ended, because nobody would write its records any more."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _show(message: Warning | str, *rest: object, **more: object) -> None:
    sys.stderr.write(f"synthgrad: warning: {' '.join(str(message).split())}\n")
    sys.stderr.flush()


@contextmanager
def quiet_torchrun() -> Generator[None]:
    """Silence the logs of torchrun's parts, which repeat our errors, and restore signals and environment at the end."""
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
