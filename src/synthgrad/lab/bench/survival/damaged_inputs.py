"""Inputs, whole and damaged, read by the laboratory's readers as the commands call them."""

from __future__ import annotations

import gzip
import pickle
import random
import signal
import struct
import threading
import warnings
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ....core import SynthgradError
from ...records import FILE, SCHEMA, Record, append, read
from ...tasks.cifar import parse_batch
from ...tasks.idx import parse_idx, read_bytes
from ...tasks.text import read_text
from ...training.snapshot import SnapshotStore

__all__ = ["INPUTS", "OUTCOMES", "Input", "try_one"]

#: What can become of a damaged input; the last three are faults.
OUTCOMES = ("refused", "warned", "unchanged", "as_given", "silently_wrong", "traceback", "hang")

_PATIENCE_S = 10


@dataclass(frozen=True, slots=True)
class Input:
    """A sort of input.

    Attributes:
        name: as recorded.
        make: writes a whole one into a folder; returns its path.
        read: reads it as the commands do; returns what they would go on with, to be compared.
        summed: whether it carries a sum, or its sum is known; otherwise what is still well-formed is taken as given.
    """

    name: str
    make: Callable[[Path], Path]
    read: Callable[[Path], Any]
    summed: bool = False


class _HangError(BaseException):
    """Raised by the alarm; no reader may take it for one of its own errors."""


def try_one(sort: Input, path: Path, content: bytes, whole: Any, draws: random.Random) -> tuple[str, str]:
    """Damage an input and read it; return the outcome, and a reason where that is a fault."""
    path.write_bytes(damaged(content, draws))
    told = StringIO()
    with warnings.catch_warnings(record=True) as caught, redirect_stderr(told), redirect_stdout(StringIO()):
        warnings.simplefilter("always")
        try:
            with _alarm():
                found = sort.read(path)
        except _WarnedError as error:
            return ("warned" if error.value in (whole, None) else "silently_wrong"), str(error)[:200]
        except SynthgradError as error:
            lines = str(error).splitlines()
            return ("refused", "") if len(lines) == 1 else ("traceback", f"{len(lines)} lines: {lines[:1]}")
        except _HangError:
            return "hang", "took longer than 10 s"
        except Exception as error:
            return "traceback", f"{type(error).__name__}: {error}"[:200]
    if found == whole:
        return "unchanged", ""
    if caught:
        return "warned", ""
    if isinstance(found, list):  # records that are not as they were written
        return "silently_wrong", f"{found}"[:200]
    return ("silently_wrong", "another value, without a word") if sort.summed else ("as_given", "")


def damaged(content: bytes, draws: random.Random) -> bytes:
    """Return content with flipped bits, cut short, with zeroes, with halves swapped, or with a part twice."""
    raw = bytearray(content)
    size = len(raw)
    match draws.randrange(5):
        case 0:
            for _ in range(draws.choice((1, 1, 1, 2, 8))):
                raw[draws.randrange(size)] ^= 1 << draws.randrange(8)
        case 1:
            del raw[draws.randrange(size) :]
        case 2:
            start = draws.randrange(size)
            end = min(size, start + draws.choice((1, 16, 512)))
            raw[start:end] = bytes(end - start)
        case 3:
            at = draws.randrange(1, size)
            raw = raw[at:] + raw[:at]
        case _:
            start = draws.randrange(size)
            part = raw[start : start + draws.choice((1, 16, 512))]
            raw[start:start] = part
    return bytes(raw)


@contextmanager
def _alarm() -> Generator[None]:
    """Raise `_HangError` after a while, where there is an alarm: in the main thread, on POSIX."""
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield
        return

    def ring(*_: object) -> None:
        raise _HangError

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, _PATIENCE_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


class _WarnedError(Exception):
    """A reader has said that something is wrong, and goes on.

    Args:
        value: what it goes on with; None for what is right.
        said: what it has said.
    """

    def __init__(self, value: Any, said: str) -> None:
        super().__init__(said)
        self.value = value


# Data sets


def _idx_file(folder: Path) -> Path:
    images = np.arange(6 * 28 * 28, dtype=np.uint8).reshape(6, 28, 28)
    path = folder / "train-images-idx3-ubyte.gz"
    path.write_bytes(
        gzip.compress(struct.pack(">4B3I", 0, 0, 8, 3, *images.shape) + images.tobytes(), mtime=0)
    )
    return path


def _read_idx(path: Path) -> Any:
    return parse_idx(read_bytes(path), path, 3).tolist()


def _cifar_file(folder: Path) -> Path:
    batch = {b"data": np.arange(2 * 3072, dtype=np.uint8).reshape(2, 3072), b"labels": [3, 7]}
    path = folder / "data_batch_1"
    path.write_bytes(pickle.dumps(batch, protocol=2))
    return path


def _read_cifar(path: Path) -> Any:
    images, labels = parse_batch(read_bytes(path), path)
    return images.tolist(), labels.tolist()


# Texts

#: Long enough when compressed that no damage puts the whole of it there twice, which would be another text.
_TEXT = "Zwölf Boxkämpfer jagen Viktor.\n" + "".join(random.Random(0).choices("abcdefgh äöü\n", k=4000))


def _text_file(folder: Path) -> Path:
    (folder / "text.txt").write_text(_TEXT, encoding="utf-8")
    return folder / "text.txt"


def _gzip_text(folder: Path) -> Path:
    (folder / "text.txt.gz").write_bytes(gzip.compress(_TEXT.encode(), mtime=0))
    return folder / "text.txt.gz"


def _read_text(path: Path) -> Any:
    text = read_text(path)
    return text.alphabet, text.train.tolist(), text.valid.tolist(), text.test.tolist()


# Records

_RECORD: Mapping[str, Any] = {
    "schema": SCHEMA,
    "experiment": "compare",
    "tier": "quick",
    "method": "cdni",
    "seed": 0,
    "cell": {"data": "mnist", "arch": "fcn", "layers": 4, "width": 256, "at": [], "update_prob": 1.0},
    "steps": 20,
    "batch_size": 256,
    "metrics": {"test_error_pct": 1.5, "test_loss": 0.06},
    "time": {"train_s": 6.1, "step_ms_median": 9.8},
    "curve": [{"step": 10, "elapsed_s": 3.1, "train_loss": 0.31, "test_error_pct": 3.2}],
    "status": "ok",
    "error": None,
    "config": {"lr": 3e-4, "rule": {"hidden": [], "norm": True}},
    "env": {"synthgrad": "0.1.0", "device": "cpu", "threads": 2},
}


def _records_file(folder: Path) -> Path:
    path = folder / FILE
    path.unlink(missing_ok=True)
    for seed in range(3):
        append(path, {**_RECORD, "seed": seed})
    return path


def _read_records(path: Path) -> Any:
    records, problems = read(path)
    changed = [
        line
        for line in map(Record.line, records)
        if {**{k: line.get(k) for k in _RECORD}, "seed": 0} != _RECORD
    ]
    if problems:
        told = sum(problem.endswith("kept") for problem in problems)
        raise _WarnedError(None if len(changed) <= told else changed, problems[0])
    # Fewer lines, or more, are a file of records like any other.
    return changed or ("whole lines", len(records))


# Snapshots

_OWNER = Record.of(_RECORD)


def _snapshot(folder: Path) -> SnapshotStore:
    kept = SnapshotStore(folder, _OWNER, every_s=0.0)
    kept.set_fingerprint({"0.weight": "float32 [64, 8]"}, "abc")
    return kept


def _snapshot_file(folder: Path) -> Path:
    kept = _snapshot(folder)
    for step in (10, 20):
        weights = torch.arange(512.0).view(64, 8) + step
        kept.save(step, lambda step=step, weights=weights: {"step": step, "net": {"0.weight": weights}})
    return kept.path(20)


def _read_snapshot(path: Path) -> Any:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        state = _snapshot(path.parent).load("cpu")
    found = None if state is None else (state["step"], state["net"]["0.weight"].tolist())
    if not caught:
        return found
    # The one before it, bit by bit, is right too.
    before = (10, (torch.arange(512.0).view(64, 8) + 10).tolist())
    raise _WarnedError(None if found == before else ("wrong", found), str(caught[0].message))


INPUTS: Sequence[Input] = (
    Input("images (IDX, gzip)", _idx_file, _read_idx, summed=True),
    Input("images (CIFAR-10 batch)", _cifar_file, _read_cifar),
    Input("text", _text_file, _read_text),
    Input("text (gzip)", _gzip_text, _read_text, summed=True),
    Input("records", _records_file, _read_records),
    Input("snapshot", _snapshot_file, _read_snapshot, summed=True),
)
