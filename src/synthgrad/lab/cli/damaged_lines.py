"""Damaged command lines, for ``bench damage``: called as the program is, up to where it would begin to work."""

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
    """Call the command line up to where it would begin to work; a line that is not refused is one like any other."""
    from ..bench import base
    from . import main, work

    asked = path.read_bytes().decode("utf-8", "surrogateescape").split("\0")
    shown = sys.stderr
    nothing = mock.Mock(return_value=0)
    with (
        mock.patch.object(work, "_train", nothing),
        mock.patch.object(base, "sweep", mock.Mock(return_value=iter(()))),
        mock.patch.object(work, "write_report", nothing),
        _noted_exit() as status,
    ):
        main.main(asked)
    said = shown.getvalue() if isinstance(shown, StringIO) else ""
    if status[0] == 2:
        # Without a command the help is shown; everything else is one line.
        if said.count("\n") > 1 or "Traceback" in said or "is a bug" in said:
            raise RuntimeError(f"{asked}: {said}")
        raise DataError("refused in a line")
    if status[0] != 0:
        raise RuntimeError(f"{asked}: exit status {status[0]}: {said}")
    return tuple(asked)


@contextmanager
def _noted_exit() -> Generator[list[Any]]:
    """Note the status with which a program wants to end."""
    status: list[Any] = [None]
    try:
        yield status
    except SystemExit as end:
        status[0] = end.code


COMMAND_LINES = tuple(
    Input(f"command line ({line.partition(chr(0))[0]})", partial(_write, line), _read_line) for line in _LINES
)
