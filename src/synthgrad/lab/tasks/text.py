"""Texts as characters: Penn Treebank, Shakespeare, and any file in UTF-8."""

from __future__ import annotations

import hashlib
import warnings
from dataclasses import dataclass, replace
from importlib.resources import as_file, files
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...core import DataError
from .files import fetch, find
from .idx import read_bytes

__all__ = ["Text", "load_ptb", "load_shakespeare", "load_shakespeare_50k", "read_text"]

#: SHA-256 of the files that results elsewhere are of, as far as known.
SHA256 = {
    "text/ptb.train.txt": "fcea919f6cf83f35d4d00c6cbf08040d13d4155226340912e2fef9c9c4102cbf",
    "text/ptb.valid.txt": "c9fe6985fe0d4ccb578183407d7668fc6066c20700cb4cf87d8ff1cc34df1bf2",
    "text/ptb.test.txt": "dd65dff31e70846b2a6030a87482edcd5d199130cdcfa1f3dccbb033728deee0",
    "text/tinyshakespeare.txt": "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
}

EMBEDDED_SHA256 = "87d4c86d057dfa690746c210ca842e922ca4cc6b5cf552ed4e8f64cab6e90ab4"

#: Characters of a text that is cut 90/5/5, at least: its smallest parts then have two, so one to predict.
MIN_CHARACTERS = 40
_MIN_PART = 2
_MAX_CHARACTERS = 65_536
_CODE_POINTS = 0x110000

_Codes = NDArray[np.uint32]


@dataclass(frozen=True, slots=True)
class Text:
    """A text in three parts, each character a number.

    The alphabet is that of the training part, in the order of Unicode. What occurs only in the other parts
    has the number `unknown`, so that every prediction has a probability, however small, and bits per
    character are finite. They are then a lower bound, for which unknown character it was is not told.

    Attributes:
        name: as in ``synthgrad list``, or the name of the file.
        train, valid, test: ``(N,)`` uint8 where `classes` is at most 256, else int64.
        alphabet: the character of each number.
        sha256: of the source, for the record; of several files, of their sums.
    """

    name: str
    train: Tensor
    valid: Tensor
    test: Tensor
    alphabet: tuple[str, ...]
    sha256: str

    @property
    def unknown(self) -> int:
        """The number of every character that is not in the alphabet; the training part has none."""
        return len(self.alphabet)

    @property
    def classes(self) -> int:
        """How many numbers there are: outputs that a network must have. The unknown one is counted."""
        return len(self.alphabet) + 1

    def to(self, device: torch.device) -> Text:
        """Return the text on a device, whole."""
        return replace(
            self, train=self.train.to(device), valid=self.valid.to(device), test=self.test.to(device)
        )


def load_ptb(data_dir: Path | None) -> Text:
    """Return the Penn Treebank as characters, in its customary parts.

    Read from ``text/ptb.{train,valid,test}.txt`` below ``data_dir``. The characters are those of the files
    as they are: words stand apart by spaces, lines end in a newline, ``<unk>`` is spelled out.

    Raises:
        DataError: if a file is missing, damaged, or too short.
    """
    content = {part: _known(data_dir, f"text/ptb.{part}.txt") for part in ("train", "valid", "test")}
    parts = {part: _codes(raw, path) for part, (raw, path) in content.items()}
    for part, (_, path) in content.items():
        if len(parts[part]) < _MIN_PART:
            raise DataError(
                f"{path}: has {len(parts[part])} characters, expected at least {_MIN_PART}; the file is "
                "damaged or cut short, fetch it again"
            )
    digest = hashlib.sha256()
    for raw, _ in content.values():
        digest.update(hashlib.sha256(raw).hexdigest().encode())
    return _numbered("ptb", parts["train"], parts["valid"], parts["test"], digest.hexdigest())


def load_shakespeare(data_dir: Path | None) -> Text:
    """Return 1.1 million characters of Shakespeare: the first 90 % to train on, then twice 5 %.

    Read from ``text/tinyshakespeare.txt`` below ``data_dir``; a missing file is downloaded.

    Raises:
        DataError: if the file is damaged, too short, or missing and not to be had.
    """
    return _cut("shakespeare", *_known(data_dir, "text/tinyshakespeare.txt"))


def load_shakespeare_50k() -> Text:
    """Return the beginning of `load_shakespeare`'s text, which is embedded in the package; cut likewise.

    Raises:
        DataError: if the installed file is damaged.
    """
    with as_file(files("synthgrad.lab.tasks") / "embedded" / "shakespeare_50k.txt") as path:
        raw = read_bytes(path)
        if hashlib.sha256(raw).hexdigest() != EMBEDDED_SHA256:
            raise DataError(f"{path}: the embedded text is damaged; reinstall synthgrad")
        return _cut("shakespeare-50k", raw, path)


def read_text(path: Path) -> Text:
    """Return a file in UTF-8 as characters: the first 90 % to train on, 5 % to validate, 5 % to test.

    Args:
        path: of the file; one that ends in ``.gz`` is decompressed.

    Raises:
        DataError: if it is no file, is not UTF-8, is too short, or has too many different characters.
    """
    if path.is_dir():
        raise DataError(f"{path}: is a directory, expected a text file in UTF-8; name one of its files")
    return _cut(path.name, read_bytes(path), path)


def _known(data_dir: Path | None, name: str) -> tuple[bytes, Path]:
    """Return the content of one of the files in `SHA256` and where it was; warn if it is another."""
    path = find(data_dir, [name]) or fetch(data_dir, name)
    if path.is_dir():
        raise DataError(f"{path}: is a directory, expected a text file; put the file in its place")
    raw = read_bytes(path)
    found = hashlib.sha256(raw).hexdigest()
    if found != SHA256[name]:
        warnings.warn(
            f"{path}: not the customary file (SHA-256 {found[:12]}…, customary {SHA256[name][:12]}…); results "
            "may differ from published ones",
            stacklevel=3,
        )
    return raw, path


def _codes(raw: bytes, path: Path) -> _Codes:
    """Return the code point of every character, ``(N,)``."""
    try:
        text = raw.decode("utf-8")  # not a file in text mode: that would change line ends
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: byte {error.start} is not UTF-8 ({error.reason}), expected a text in UTF-8; convert it, "
            "or fetch it again if it is damaged"
        ) from error
    return np.frombuffer(text.encode("utf-32-le"), "<u4")


def _cut(name: str, raw: bytes, path: Path) -> Text:
    """Cut a text in parts of 90, 5 and 5 percent, in order."""
    codes = _codes(raw, path)
    n = len(codes)
    if n < MIN_CHARACTERS:
        raise DataError(
            f"{path}: has {n} characters, expected at least {MIN_CHARACTERS}, so that each part has one to predict; "
            "give a longer text"
        )
    train, valid, test = np.split(codes, [n * 90 // 100, n * 95 // 100])
    return _numbered(name, train, valid, test, hashlib.sha256(raw).hexdigest())


def _numbered(name: str, train: _Codes, valid: _Codes, test: _Codes, sha256: str) -> Text:
    """Number the characters; warn of those that the training part does not have."""
    occurs = np.zeros(_CODE_POINTS, np.bool_)
    occurs[train] = True
    alphabet = np.flatnonzero(occurs)
    unknown = len(alphabet)
    if unknown > _MAX_CHARACTERS:
        raise DataError(
            f"{name}: has {unknown} different characters, expected at most {_MAX_CHARACTERS}; is it a text?"
        )
    numbers = np.full(_CODE_POINTS, unknown, np.uint8 if unknown < 256 else np.int64)
    numbers[alphabet] = np.arange(unknown)
    train_part, valid_part, test_part = (torch.from_numpy(numbers[part]) for part in (train, valid, test))
    in_valid, in_test = (int((part == unknown).sum()) for part in (valid_part, test_part))
    if in_valid or in_test:
        warnings.warn(
            f"{name}: {in_valid} characters to validate and {in_test} to test do not occur in training; they "
            "count as one unknown character, so bits per character are a lower bound",
            stacklevel=3,
        )
    return Text(name, train_part, valid_part, test_part, tuple(map(chr, alphabet)), sha256)
