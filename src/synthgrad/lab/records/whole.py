"""Files that appear whole or not at all, and what is said where they cannot be written."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from ...core import SynthgradError

__all__ = ["WriteError", "write_whole"]


class WriteError(SynthgradError, OSError):
    """A result could not be written: the disk is full, or may not be written."""

    #: No bad usage, a bad run.
    exit_status = 1


def write_whole(path: Path, text: str) -> None:
    """Write a text as a file, in UTF-8; the file appears whole or not at all.

    Raises:
        OSError: if it cannot be written; what was there before is there still.
    """
    if path.exists() and not path.is_file():  # a folder, or a device, which would be replaced by a file
        kind = "Is a directory" if path.is_dir() else "Is no regular file"
        raise OSError(0, kind, str(path))
    if not path.name:
        raise OSError(0, "Is no name of a file", str(path))
    partial = path.with_name(f"{path.name}.partial")
    try:
        with partial.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise
