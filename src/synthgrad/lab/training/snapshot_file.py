"""The file of a snapshot, with a checksum.

Its parts are a line that identifies the format; a line of JSON, the header; the state as ``torch.save`` writes it; and
32 bytes, the SHA-256 of everything before.
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

#: State of a run, as `Driver.state_dict` returns it.
State = dict[str, Any]

FORMAT = 2
_MAGIC = b"synthgrad snapshot\n"
_DIGEST_BYTES = hashlib.sha256().digest_size


class DamagedSnapshotError(Exception):
    """The file is not as it was written; the message says why."""


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """Identifies the run that a snapshot belongs to; a run resumes only from a snapshot with its own fingerprint.

    Attributes:
        run: the settings that identify the run.
        data: checksum of the training data, or None.
        parameters: dtype and shape of every parameter and buffer, by name.
        stage: index of the process that saves this part of the state.
        stages: number of processes.
    """

    run: Mapping[str, Any]
    data: str | None
    parameters: Mapping[str, str]
    stage: int = 0
    stages: int = 1

    @staticmethod
    def tensor_forms(net: nn.Module) -> dict[str, str]:
        """Return dtype and shape of every tensor in a network's state, by name."""
        return {
            name: f"{str(t.dtype).removeprefix('torch.')} {list(t.shape)}"
            for name, t in net.state_dict().items()
            if isinstance(t, torch.Tensor)
        }


class _HashingFile:
    """A file that computes the SHA-256 of everything that is written to it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.digest = hashlib.sha256()

    def write(self, part: bytes) -> int:
        self.digest.update(part)
        return self._file.write(part)

    def flush(self) -> None:
        self._file.flush()


def write_snapshot(path: Path, owner: Fingerprint, about: Mapping[str, Any], state: State) -> None:
    """Write a snapshot atomically: the file exists completely or not at all, even after a power failure.

    Args:
        path: the file.
        owner: fingerprint of the run.
        about: further entries of the header.
        state: state of the run.

    Raises:
        OSError, RuntimeError: if the file cannot be written; no part of it is left behind.
    """
    header = {"format": FORMAT, "synthgrad": __version__, **asdict(owner), **about}
    partial = path.with_name(f"{path.name}.partial")
    try:
        with partial.open("wb") as file:
            hashing = _HashingFile(file)
            hashing.write(_MAGIC)
            hashing.write(json.dumps(header).encode() + b"\n")
            torch.save(state, hashing)  # pyright: ignore[reportArgumentType]
            file.write(hashing.digest.digest())
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        _sync_folder(path.parent)
    except BaseException:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise


def _sync_folder(folder: Path) -> None:
    """Write the file's new name to the disk, on systems where folders can be opened."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def read_snapshot(path: Path, owner: Fingerprint, device: str) -> tuple[dict[str, Any], State]:
    """Return the header of a snapshot, and its state on a device; no code in the file is run.

    Args:
        path: the file.
        owner: fingerprint that is expected.
        device: device for the state's tensors.

    Raises:
        DamagedSnapshotError: if the file cannot be read, or its checksum is wrong.
        ConfigError: if the file is intact but belongs to another run or version.
    """
    try:
        if not path.is_file():
            raise OSError(0, "it is no regular file")
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
            f"{path}: is a snapshot of another run ({difference}); move it away, or run without --resume into another "
            "folder"
        )
    try:
        state = torch.load(io.BytesIO(content[end + 1 :]), map_location=device, weights_only=True)
    except Exception as error:  # the file is intact, but contains more than tensors, numbers and containers
        raise DamagedSnapshotError(" ".join(str(error).split())) from error
    return header, state


def _difference(header: Mapping[str, Any], owner: Fingerprint) -> str | None:
    """Describe the first difference between a header and the expected fingerprint; None if there is none."""
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
