"""One program at a time writes to a results folder; the operating system lets go of it for a program that was killed."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from ...core import ConfigError

try:
    import fcntl
except ImportError:  # not a POSIX system
    fcntl = None

__all__ = ["LOCK", "locked"]

LOCK = ".lock"
_TRIES = 20


@contextmanager
def locked(folder: Path) -> Generator[None]:
    """Hold a results folder, which is there, as long as the context lasts.

    Raises:
        ConfigError: if another program holds it, which is named; or if the lock cannot be written.
    """
    path = folder / LOCK
    try:
        file = _taken(path)
    except OSError as error:
        raise ConfigError(
            f"--out {folder}: cannot be locked ({error.strerror}); name a folder that can be written with --out"
        ) from error
    if file is None:
        raise ConfigError(
            f"--out {folder}: is in use by {_holder(path)}; wait for it, or name another folder with --out"
        )
    try:
        with file:
            yield
            _remove(path)
    except BaseException:
        _remove(path)
        raise


def _remove(path: Path) -> None:
    with suppress(OSError):  # a folder that was removed meanwhile, or can be written no more
        path.unlink(missing_ok=True)


def _taken(path: Path) -> BinaryIO | None:
    """Return the open lock, with this process's name in it; None if another holds it."""
    for _ in range(_TRIES):
        file = path.open("a+b")
        if not _hold(file, path):
            file.close()
            return None
        # The one who held it may have removed it between our opening and locking: then ours is the lock of no file.
        if path.exists() and path.stat().st_ino == os.fstat(file.fileno()).st_ino:
            about = {"pid": os.getpid(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
            file.truncate(0)
            file.write(json.dumps(about).encode())
            file.flush()
            return file
        file.close()
    return None


def _hold(file: BinaryIO, path: Path) -> bool:
    if fcntl is not None:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True
    # Elsewhere the name in the file has to do: whose process is gone has let go of it.
    pid = _about(path).get("pid")
    return not (isinstance(pid, int) and pid != os.getpid() and _alive(pid))


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _about(path: Path) -> dict[str, Any]:
    with suppress(OSError, ValueError):
        found = json.loads(path.read_bytes())
        return found if isinstance(found, dict) else {}
    return {}


def _holder(path: Path) -> str:
    about = _about(path)
    if "pid" not in about:  # it has only just begun
        return "another process"
    return f"process {about['pid']}, since {about.get('since')}"
