"""Result records: one JSON object a line, appended and flushed as each run ends, never rewritten."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import stat
from collections.abc import Iterable, Mapping
from io import RawIOBase
from pathlib import Path
from typing import Any

from ...core import ConfigError
from .parts import OddPart
from .record import SCHEMA, Record
from .whole import WriteError

__all__ = ["FILE", "append", "finished", "identity", "open_folder", "read"]

FILE = "results.jsonl"

#: Lines about what was left out of one file; more are counted.
_MOST_PROBLEMS = 10

#: Half of a character of two, which no file and no terminal takes.
_HALF = re.compile(r"\\u[dD][89a-fA-F]")

#: Part of a line: sum of the rest of it.
_SUM = "sum"

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
        _check_regular(path)
        with path.open("a", encoding="utf-8"):
            pass
    except OSError as error:
        raise ConfigError(
            f"--out {folder}: cannot be written ({error.strerror}); name a folder that can be with --out"
        ) from error
    return path


def _check_regular(path: Path) -> None:
    """Raise OSError if something is there that a program could wait for without end, a pipe say."""
    if path.exists() and not (stat.S_ISREG(path.stat().st_mode) or path.is_dir()):
        raise OSError(0, "Is no regular file", str(path))


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
    """Append a record in one write, and have it reach the disk.

    Args:
        path: of the file.
        record: a `Record`, or an object with the keys of a line, which is written as it is.

    Raises:
        WriteError: if it cannot be written; the file is as it was before then.
    """
    line = record.line() if isinstance(record, Record) else record
    whole = {k: v for k, v in line.items() if k != _SUM}
    text = _text({**whole, _SUM: _sum(_text(_plain(whole)))}) + "\n"
    try:
        # Not buffered: what a full disk did not take must not be written once more when the file is closed.
        with path.open("a+b", buffering=0) as file:
            size = file.seek(0, os.SEEK_END)
            # A killed program may have left half a line: the new record must not be joined to it.
            if size and _last_byte(file) != b"\n":
                text = "\n" + text
            data = text.encode()
            try:
                _write_all(file, data)
            except BaseException:
                # An interrupt may come when all has been written: then the record is whole, and stays.
                if file.seek(0, os.SEEK_END) != size + len(data):
                    file.truncate(size)
                raise
            try:
                os.fsync(file.fileno())
            except OSError:  # an interrupt is none: the record is whole then, and stays
                file.truncate(size)
                raise
    except OSError as error:
        raise WriteError(
            f"{path}: a record cannot be written ({error.strerror}); make room there, and go on with --resume"
        ) from error


def _text(record: Mapping[str, Any]) -> str:
    return json.dumps(_plain(record), allow_nan=False, ensure_ascii=False)


def _sum(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _write_all(file: RawIOBase, content: bytes) -> None:
    left = memoryview(content)
    while left:
        left = left[file.write(left) or 0 :]  # a disk that is nearly full takes a part, and then refuses


def _last_byte(file: Any) -> bytes:
    file.seek(-1, os.SEEK_END)
    return file.read(1)


def read(path: Path) -> tuple[list[Record], list[str]]:
    """Return the records of a file, and lines about what was left out or has been changed, some ten at most."""
    records: list[Record] = []
    problems: list[str] = []
    more = {"left out": 0, "kept": 0}
    if not path.exists():
        return records, problems
    try:
        _check_regular(path)
        with path.open(encoding="utf-8-sig", errors="replace") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    record, wrong = _parsed(line)
                    fate = "left out" if record is None else "kept"
                    if record is not None:
                        records.append(record)
                    if not wrong:
                        continue
                    if len(problems) < _MOST_PROBLEMS:
                        problems.append(f"{path}, line {number}: {wrong}, {fate}")
                    else:
                        more[fate] += 1
    except OSError as error:
        problems.append(f"{path}: cannot be read ({error.strerror}), left out")
    problems += [f"{path}: and {num} more lines, {fate}" for fate, num in more.items() if num]
    return records, problems


def _parsed(line: str) -> tuple[Record | None, str]:
    """Return the record of a line, None if it has to be left out, and what is wrong with it: empty if nothing."""
    try:
        found = json.loads(line)
        if _HALF.search(line):
            json.dumps(found, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        return None, "is no JSON (cut short?)"
    if not isinstance(found, dict) or found.get("schema") != SCHEMA:
        return None, f"has another schema than {SCHEMA}"
    changed = _changed(found)
    try:
        return Record.of(found), "is not as it was written" if changed else ""
    except OddPart as odd:
        return None, f"has no proper '{odd}'"


def _changed(line: dict[str, Any]) -> bool:
    """Take the sum out of a line; return whether it is another than that of the rest. Older lines have none."""
    found = line.pop(_SUM, None)
    try:
        return found is not None and found != _sum(_text(line))
    except (ValueError, RecursionError):  # a number that JSON does not have
        return True


def identity(record: Mapping[str, Any]) -> str:
    """Return what tells one run from another, as a string to compare."""
    return json.dumps(_plain({k: record.get(k) for k in _IDENTITY}), sort_keys=True)


def finished(records: Iterable[Mapping[str, Any]]) -> set[str]:
    """Return the identities of the runs that need not be done again: ended well, or diverged."""
    return {identity(r) for r in records if r.get("status") in ("ok", "diverged")}
