"""Result records: one JSON object a line, appended and flushed as each run ends, never rewritten."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ...core import ConfigError
from .shape import odd_part

__all__ = ["FILE", "SCHEMA", "Record", "append", "finished", "identity", "open_folder", "read"]

SCHEMA = 1
FILE = "results.jsonl"

Record = dict[str, Any]

#: Lines about what was left out of one file; more are counted.
_MOST_PROBLEMS = 10

#: Half of a character of two, which no file and no terminal takes.
_HALF = re.compile(r"\\u[dD][89a-fA-F]")

#: Where these agree, two records are of the same run.
_IDENTITY = ("experiment", "tier", "method", "seed", "cell", "steps", "batch_size", "config")


def open_folder(folder: Path) -> Path:
    """Make a results folder and return the path of its records.

    Raises:
        ConfigError: if nothing can be written there; tried before any work is done.
    """
    path = folder / FILE
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8"):
            pass
    except OSError as error:
        raise ConfigError(
            f"--out {folder}: cannot be written ({error.strerror}); name a folder that can be with --out"
        ) from error
    return path


def _plain(value: Any) -> Any:
    """Return the value with numbers that JSON cannot hold as null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return value


def append(path: Path, record: Mapping[str, Any]) -> None:
    """Append a record in one write, and have it reach the disk."""
    line = json.dumps(_plain(record), allow_nan=False, ensure_ascii=False) + "\n"
    with path.open("a+b") as file:
        # A killed program may have left half a line: the new record must not be joined to it.
        if file.tell() and _last_byte(file) != b"\n":
            line = "\n" + line
        file.write(line.encode())
        file.flush()
        os.fsync(file.fileno())


def _last_byte(file: Any) -> bytes:
    file.seek(-1, os.SEEK_END)
    return file.read(1)


def read(path: Path) -> tuple[list[Record], list[str]]:
    """Return the records of a file, and lines about what was left out, some ten at most."""
    records: list[Record] = []
    problems: list[str] = []
    more = 0
    if not path.exists():
        return records, problems
    try:
        with path.open(encoding="utf-8-sig", errors="replace") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    record, wrong = _parsed(line)
                    if not wrong:
                        records.append(record)
                    elif len(problems) < _MOST_PROBLEMS:
                        problems.append(f"{path}, line {number}: {wrong}, left out")
                    else:
                        more += 1
    except OSError as error:
        problems.append(f"{path}: cannot be read ({error.strerror}), left out")
    if more:
        problems.append(f"{path}: and {more} more lines, left out")
    return records, problems


def _parsed(line: str) -> tuple[Record, str]:
    """Return the record of a line, and what is wrong with it: empty if nothing."""
    try:
        record = json.loads(line)
        if _HALF.search(line):
            json.dumps(record, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        return {}, "is no JSON (cut short?)"
    if not isinstance(record, dict) or record.get("schema") != SCHEMA:
        return {}, f"has another schema than {SCHEMA}"
    odd = odd_part(record)
    return record, f"has no proper '{odd}'" if odd else ""


def identity(record: Mapping[str, Any]) -> str:
    """Return what tells one run from another, as a string to compare."""
    return json.dumps(_plain({k: record.get(k) for k in _IDENTITY}), sort_keys=True)


def finished(records: Iterable[Record]) -> set[str]:
    """Return the identities of the runs that need not be done again: ended well, or diverged."""
    return {identity(r) for r in records if r.get("status") in ("ok", "diverged")}
