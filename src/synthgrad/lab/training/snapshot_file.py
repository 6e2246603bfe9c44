"""A snapshot as a file, with a checksum over all of it.

Its parts: a line that says what it is; a line of JSON about whose it is; what ``torch.save`` wrote; and the SHA-256 of
all of that, 32 bytes.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import nn

from ...core import ConfigError
from ...version import __version__

__all__ = ["FORMAT", "DamagedSnapshotError", "Fingerprint", "State", "read_snapshot", "write_snapshot"]

State = dict[str, Any]

FORMAT = 2
_MAGIC = b"synthgrad snapshot\n"
_DIGEST_BYTES = hashlib.sha256().digest_size


class DamagedSnapshotError(Exception):
    """The file is not what was once written; the message says why."""


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """Whose state it is: what must agree before a run goes on from it.

    Attributes:
        run: the settings that tell one run from another.
        data: sum of the data that it is trained on, or None.
        parameters: shape and dtype of every parameter and buffer, by name.
        stage, stages: which of how many processes saves this part of the state.
    """

    run: Mapping[str, Any]
    data: str | None
    parameters: Mapping[str, str]
    stage: int = 0
    stages: int = 1

    @staticmethod
    def tensor_forms(net: nn.Module) -> dict[str, str]:
        """Return shape and dtype of everything in a network's state, by name."""
        return {
            name: f"{str(t.dtype).removeprefix('torch.')} {list(t.shape)}"
            for name, t in net.state_dict().items()
            if isinstance(t, torch.Tensor)
        }


class _Summed:
    """A file that sums what is written to it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.sum = hashlib.sha256()

    def write(self, part: bytes) -> int:
        self.sum.update(part)
        return self._file.write(part)

    def flush(self) -> None:
        self._file.flush()


def write_snapshot(path: Path, owner: Fingerprint, about: Mapping[str, Any], state: State) -> None:
    """Write a state; the file is there whole or not at all, also after a loss of power.

    Raises:
        OSError, RuntimeError: if it cannot be written; nothing is left of it then.
    """
    header = {"format": FORMAT, "synthgrad": __version__, **asdict(owner), **about}
    partial = path.with_name(f"{path.name}.partial")
    try:
        with partial.open("wb") as file:
            summed = _Summed(file)
            summed.write(_MAGIC)
            summed.write(json.dumps(header).encode() + b"\n")
            torch.save(state, summed)  # pyright: ignore[reportArgumentType]
            file.write(summed.sum.digest())
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        _sync_folder(path.parent)
    except BaseException:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise


def _sync_folder(folder: Path) -> None:
    """Have the file's new name reach the disk, where folders can be opened."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def read_snapshot(path: Path, owner: Fingerprint, device: str) -> tuple[dict[str, Any], State]:
    """Return what a snapshot says of itself, and its state on a device; nothing in it is run as code.

    Raises:
        DamagedSnapshotError: if it cannot be read, or its sum is another than when it was written.
        ConfigError: if it is whole, but another run's, or another version's.
    """
    try:
        if not path.is_file():
            raise OSError(0, "Is no regular file")
        raw = path.read_bytes()
    except OSError as error:
        raise DamagedSnapshotError(error.strerror or type(error).__name__) from error
    content, digest = raw[:-_DIGEST_BYTES], raw[-_DIGEST_BYTES:]
    if not content.startswith(_MAGIC):
        raise DamagedSnapshotError("it does not begin like a snapshot of this version")
    if hashlib.sha256(content).digest() != digest:
        raise DamagedSnapshotError("its checksum is wrong")
    end = content.index(b"\n", len(_MAGIC))
    header = json.loads(content[len(_MAGIC) : end])
    if difference := _difference(header, owner):
        raise ConfigError(
            f"{path}: is no snapshot of this run ({difference}); move it away, or run without --resume into another "
            "folder"
        )
    try:
        state = torch.load(io.BytesIO(content[end + 1 :]), map_location=device, weights_only=True)
    except Exception as error:  # whole, but made of other things than tensors, numbers and containers
        raise DamagedSnapshotError(" ".join(str(error).split())) from error
    return header, state


def _difference(header: Mapping[str, Any], owner: Fingerprint) -> str | None:
    """Say in what a snapshot differs from what is expected; None if in nothing."""
    wanted = json.loads(json.dumps({"format": FORMAT, "synthgrad": __version__, **asdict(owner)}))
    for name, words in (
        ("format", "format"),
        ("synthgrad", "synthgrad"),
        ("stages", "number of stages"),
        ("stage", "stage"),
    ):
        if header.get(name) != wanted[name]:
            return f"{words} {header.get(name)}, expected {wanted[name]}"
    for part in ("run", "parameters"):
        found, expected = header.get(part) or {}, wanted[part]
        for key in dict.fromkeys([*expected, *found]):
            if found.get(key) != expected.get(key):
                what = f"parameter {key}" if part == "parameters" else key
                return f"{what} {_short(found.get(key))}, expected {_short(expected.get(key))}"
    if header.get("data") != wanted["data"]:
        return "it was trained on other data"
    return None


def _short(value: Any) -> str:
    text = json.dumps(value) if not isinstance(value, str) else value
    return "none" if value is None else text if len(text) <= 80 else f"{text[:77]}…"
