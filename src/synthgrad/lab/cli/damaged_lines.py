"""Damaged command lines for ``bench damage``: the program parses them, and stops before it would train or measure."""

from __future__ import annotations

import sys
from collections.abc import Generator
from contextlib import contextmanager
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any
from unittest import mock

from ...core import DataError
from ..bench.survival.damaged_inputs import Input

__all__ = ["COMMAND_LINES"]

_LINES = (
    "compare\0--steps\x003\0--batch-size\x0032\0--methods\0backprop,cdni\0--device\0cpu\0--layers\x003\0--width\x008",
    "run\0charlm\0--tier\0smoke\0--unroll\x005\0--methods\0dni\0--seeds\x000,1\0--threads\x001\0--jobs\x002",
    "bench\0step\0--tier\0smoke\0--width\x0016\0--layers\x003\0--rounds\x002\0--modes\0eager",
)


def _write(line: str, folder: Path) -> Path:
    path = folder / "line"
    path.write_text(line, encoding="utf-8")
    return path


def _read_line(path: Path) -> Any:
    """Run the command line without any training or measuring; return its arguments if they are accepted.

    Raises:
        DataError: if they are refused in one line, which is the right reaction to damage.
        RuntimeError: if the program reacts in any other way.
    """
    from ..bench import base
    from . import main, work

    arguments = path.read_bytes().decode("utf-8", "surrogateescape").split("\0")
    stderr = sys.stderr
    nothing = mock.Mock(return_value=0)
    with (
        mock.patch.object(work, "_train", nothing),
        mock.patch.object(base, "sweep", mock.Mock(return_value=iter(()))),
        mock.patch.object(work, "write_report", nothing),
        _catch_exit() as status,
    ):
        main.main(arguments)
    printed = stderr.getvalue() if isinstance(stderr, StringIO) else ""
    if status[0] == 2:
        if printed.count("\n") > 1 or "Traceback" in printed or "is a bug" in printed:
            raise RuntimeError(f"{arguments}: {printed}")
        raise DataError("refused in a line")
    if status[0] != 0:
        raise RuntimeError(f"{arguments}: exit status {status[0]}: {printed}")
    return tuple(arguments)


@contextmanager
def _catch_exit() -> Generator[list[Any]]:
    """Catch a program's exit; the only item of the list is then its exit status."""
    status: list[Any] = [None]
    try:
        yield status
    except SystemExit as end:
        status[0] = end.code


COMMAND_LINES = tuple(
    Input(f"command line ({line.partition(chr(0))[0]})", partial(_write, line), _read_line) for line in _LINES
)
