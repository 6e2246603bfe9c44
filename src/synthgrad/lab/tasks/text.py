"""Texts as sequences of characters: Penn Treebank, Shakespeare, and any UTF-8 file."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...core import DataError
from .files import fetch, find
from .idx import read_bytes

__all__ = [
    "Source",
    "Text",
    "code_points",
    "numbers_of",
    "read_file",
    "read_ptb",
    "read_shakespeare",
    "read_shakespeare_50k",
    "read_text",
    "to_text",
]

#: SHA-256 of the files that published results use, as far as we know.
SHA256 = {
    "text/ptb.train.txt": "fcea919f6cf83f35d4d00c6cbf08040d13d4155226340912e2fef9c9c4102cbf",
    "text/ptb.valid.txt": "c9fe6985fe0d4ccb578183407d7668fc6066c20700cb4cf87d8ff1cc34df1bf2",
    "text/ptb.test.txt": "dd65dff31e70846b2a6030a87482edcd5d199130cdcfa1f3dccbb033728deee0",
    "text/tinyshakespeare.txt": "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
}

EMBEDDED_SHA256 = "87d4c86d057dfa690746c210ca842e922ca4cc6b5cf552ed4e8f64cab6e90ab4"

#: Minimum length of a text that is split 90/5/5: its smallest parts then have two characters, one of them to predict.
MIN_CHARACTERS = 40
_MIN_PART = 2
_MAX_CHARACTERS = 65_536
_CODE_POINTS = 0x110000


@dataclass(frozen=True, slots=True)
class Text:
    """A text in three parts, with a number for each character.

    The alphabet has the characters of the training part, in Unicode order. All characters that occur only in the other
    parts share the number `unknown`, so that every character has a probability and bits per character are finite. They
    are then a lower bound, because the network need not tell unknown characters apart.

    Attributes:
        name: name in ``synthgrad list``, or the name of the file.
        train, valid, test: parts of the text, ``(N,)``; uint8 if `classes` is at most 256, else int64.
        alphabet: the character of each number.
        sha256: SHA-256 of the source, for records; for several files, the SHA-256 of their sums.
    """

    name: str
    train: Tensor
    valid: Tensor
    test: Tensor
    alphabet: tuple[str, ...]
    sha256: str

    @property
    def unknown(self) -> int:
        """The number of all characters outside the alphabet; it does not occur in the training part."""
        return len(self.alphabet)

    @property
    def classes(self) -> int:
        """The number of outputs that a network needs: the size of the alphabet, and one for `unknown`."""
        return len(self.alphabet) + 1

    def to(self, device: torch.device) -> Text:
        """Return the text with all parts on a device."""
        return replace(
            self, train=self.train.to(device), valid=self.valid.to(device), test=self.test.to(device)
        )


@dataclass(frozen=True, slots=True)
class Source:
    """A text in three parts, not yet turned into numbers. Two are equal if their names and sums are.

    Attributes:
        name: name in ``synthgrad list``, or the name of the file.
        sha256: as in `Text`.
        train, valid, test: parts of the text.
    """

    name: str
    sha256: str
    train: str = field(compare=False, repr=False)
    valid: str = field(compare=False, repr=False)
    test: str = field(compare=False, repr=False)


def read_ptb(data_dir: Path | None) -> Source:
    """Read the Penn Treebank, in its usual three parts.

    The files are ``text/ptb.{train,valid,test}.txt`` below ``data_dir``. Their characters are used unchanged: spaces
    separate words, lines end in a newline, and ``<unk>`` is spelled out.

    Raises:
        DataError: if a file is missing, damaged, or too short.
    """
    content = {part: _read_known(data_dir, f"text/ptb.{part}.txt") for part in ("train", "valid", "test")}
    parts = {part: _decoded(raw, path) for part, (raw, path) in content.items()}
    for part, (_, path) in content.items():
        if len(parts[part]) < _MIN_PART:
            raise DataError(
                f"{path}: has {len(parts[part])} characters, expected at least {_MIN_PART}; the file is "
                "damaged or cut short, fetch it again"
            )
    digest = hashlib.sha256()
    for raw, _ in content.values():
        digest.update(hashlib.sha256(raw).hexdigest().encode())
    return Source("ptb", digest.hexdigest(), **parts)


def read_shakespeare(data_dir: Path | None) -> Source:
    """Read 1.1 million characters of Shakespeare: 90 % to train, 5 % to validate and 5 % to test on, in this order.

    The file is ``text/tinyshakespeare.txt`` below ``data_dir``; it is downloaded if it is missing.

    Raises:
        DataError: if the file is damaged or too short, or is missing and cannot be downloaded.
    """
    return _split("shakespeare", *_read_known(data_dir, "text/tinyshakespeare.txt"))


def read_shakespeare_50k() -> Source:
    """Read the first 50,000 characters of Shakespeare, which the package contains, split as by `read_shakespeare`.

    Raises:
        DataError: if the installed file is damaged.
    """
    with as_file(files("synthgrad.lab.tasks") / "embedded" / "shakespeare_50k.txt") as path:
        raw = read_bytes(path)
        if hashlib.sha256(raw).hexdigest() != EMBEDDED_SHA256:
            raise DataError(f"{path}: the embedded text is damaged; reinstall synthgrad")
        return _split("shakespeare-50k", raw, path)


def read_file(path: Path) -> Source:
    """Read a UTF-8 file: 90 % to train, 5 % to validate and 5 % to test on, in this order.

    Args:
        path: the file; it is decompressed if its name ends in ``.gz``.

    Raises:
        DataError: if it is no file, is not UTF-8, or is too short.
    """
    if path.is_dir():
        raise DataError(f"{path}: is a directory, expected a UTF-8 text file; name one of its files")
    return _split(path.name, read_bytes(path), path)


def read_text(path: Path) -> Text:
    """Load the characters of a UTF-8 file, split as by `read_file`.

    Raises:
        DataError: if it is no file, is not UTF-8, is too short, or has too many different characters.
    """
    return to_text(read_file(path))


def _read_known(data_dir: Path | None, name: str) -> tuple[bytes, Path]:
    """Return the content and path of a file listed in `SHA256`; warn if its checksum is another one."""
    path = find(data_dir, [name]) or fetch(data_dir, name)
    if path.is_dir():
        raise DataError(f"{path}: is a directory, expected a text file; put the file there instead")
    raw = read_bytes(path)
    found = hashlib.sha256(raw).hexdigest()
    if found != SHA256[name]:
        warnings.warn(
            f"{path}: not the usual file (SHA-256 {found[:12]}…, expected {SHA256[name][:12]}…); results "
            "may differ from published ones",
            stacklevel=3,
        )
    return raw, path


def _decoded(raw: bytes, path: Path) -> str:
    try:
        return raw.decode("utf-8")  # decoded here, because reading in text mode would change line ends
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: byte {error.start} is not UTF-8 ({error.reason}), expected a UTF-8 text; convert the file, "
            "or fetch it again if it is damaged"
        ) from error


def _split(name: str, raw: bytes, path: Path) -> Source:
    """Split a text into parts of 90, 5 and 5 percent, in order."""
    text = _decoded(raw, path)
    n = len(text)
    if n < MIN_CHARACTERS:
        raise DataError(
            f"{path}: has {n} characters, expected at least {MIN_CHARACTERS}, so that each part has one to predict; "
            "name a longer text"
        )
    first, second = n * 90 // 100, n * 95 // 100
    return Source(name, hashlib.sha256(raw).hexdigest(), text[:first], text[first:second], text[second:])


def code_points(text: str) -> NDArray[np.uint32]:
    """Return the code point of every character, ``(N,)``."""
    return np.frombuffer(text.encode("utf-32-le"), "<u4")


def numbers_of(alphabet: Sequence[str]) -> NDArray[Any]:
    """Return the number of every code point: its place in the alphabet, or the size of the alphabet."""
    unknown = len(alphabet)
    numbers = np.full(_CODE_POINTS, unknown, np.uint8 if unknown < 256 else np.int64)
    numbers[code_points("".join(alphabet))] = np.arange(unknown)
    return numbers


def to_text(source: Source) -> Text:
    """Number the characters of a text; warn if some do not occur in the training part.

    Raises:
        DataError: if there are too many different characters.
    """
    train, valid, test = (code_points(part) for part in (source.train, source.valid, source.test))
    occurs = np.zeros(_CODE_POINTS, np.bool_)
    occurs[train] = True
    alphabet = tuple(map(chr, np.flatnonzero(occurs)))
    unknown = len(alphabet)
    if unknown > _MAX_CHARACTERS:
        raise DataError(
            f"{source.name}: has {unknown} different characters, expected at most {_MAX_CHARACTERS}; check that it is a "
            "text"
        )
    numbers = numbers_of(alphabet)
    train_part, valid_part, test_part = (torch.from_numpy(numbers[part]) for part in (train, valid, test))
    in_valid, in_test = (int((part == unknown).sum()) for part in (valid_part, test_part))
    if in_valid or in_test:
        warnings.warn(
            f"{source.name}: {in_valid} characters of the validation part and {in_test} of the test part do not occur "
            "in the training part; they count as one unknown character, so bits per character are a lower bound",
            stacklevel=3,
        )
    return Text(source.name, train_part, valid_part, test_part, alphabet, source.sha256)
