"""Result records: one JSON object a line, appended and flushed as each run ends, never rewritten."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..core import ConfigError

__all__ = ["FILE", "SCHEMA", "Record", "append", "finished", "identity", "open_folder", "read"]

SCHEMA = 1
FILE = "results.jsonl"

Record = dict[str, Any]

#: What these parts of a record must be where they are there; another one is left out, and said to be.
_SHAPE: dict[str, type] = {
    "experiment": str,
    "method": str,
    "status": str,
    "cell": dict,
    "config": dict,
    "metrics": dict,
    "time": dict,
    "curve": list,
    "env": dict,
}

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
    """Return the records of a file, and a line about each thing that was left out."""
    records: list[Record] = []
    problems: list[str] = []
    if not path.exists():
        return records, problems
    with path.open(encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except (ValueError, RecursionError):
                problems.append(f"{path}, line {number}: is no JSON (cut short?), left out")
                continue
            if not isinstance(record, dict) or record.get("schema") != SCHEMA:
                problems.append(f"{path}, line {number}: has another schema than {SCHEMA}, left out")
                continue
            odd = [name for name, kind in _SHAPE.items() if not isinstance(record.get(name, kind()), kind)]
            if odd:
                problems.append(f"{path}, line {number}: has no proper '{odd[0]}', left out")
                continue
            records.append(record)
    return records, problems


def identity(record: Mapping[str, Any]) -> str:
    """Return what tells one run from another, as a string to compare."""
    return json.dumps(_plain({k: record.get(k) for k in _IDENTITY}), sort_keys=True)


def finished(records: Iterable[Record]) -> set[str]:
    """Return the identities of the runs that need not be done again: ended well, or diverged."""
    return {identity(r) for r in records if r.get("status") in ("ok", "diverged")}
