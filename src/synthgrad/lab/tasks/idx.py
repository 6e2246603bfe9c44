"""Reads IDX files, the format of MNIST: a big-endian header, then one byte for each value."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...core import DataError

__all__ = ["MAX_BYTES", "parse_idx", "read_bytes"]


#: Maximum size of a data file in bytes, decompressed.
MAX_BYTES = 1 << 29


def read_bytes(path: Path) -> bytes:
    """Return the content of a file, decompressed if its name ends in ``.gz``.

    Raises:
        DataError: if the file cannot be read, is damaged, or holds more than `MAX_BYTES`. The message names it.
    """
    try:
        if path.exists() and not path.is_file() and not path.is_dir():  # reading it might never end
            raise DataError(
                f"{path}: is a pipe or device, expected a file; write its content to a file and name that"
            )
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
            if len(content) > MAX_BYTES:
                raise DataError(
                    f"{path}: holds more than {MAX_BYTES >> 20} MiB, which is the limit for a data file; "
                    "name a smaller one"
                )
            return content
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(
            f"{path}: cannot be read ({error or 'unexpected end of file'}), so it is damaged or cut "
            "short; remove it and fetch it again"
        ) from error


def parse_idx(content: bytes, path: Path, ndim: int) -> NDArray[np.uint8]:
    """Return the array in an IDX file of unsigned bytes.

    Args:
        content: the decompressed file.
        path: the file's path, for error messages.
        ndim: expected number of dimensions: 3 for images, 1 for labels.

    Raises:
        DataError: if the header is another one, or the size of the content does not match it.
    """
    magic = content[:4]
    if magic != bytes((0, 0, 8, ndim)):
        raise DataError(
            f"{path}: starts with {magic.hex() or 'nothing'}, expected {bytes((0, 0, 8, ndim)).hex()} "
            f"(IDX, unsigned bytes, {ndim} dimensions); the file is damaged or has another format, fetch it again"
        )
    head = 4 + 4 * ndim
    if len(content) < head:
        raise DataError(
            f"{path}: ends inside its header of {head} bytes; the file is cut short, fetch it again"
        )
    shape = tuple(int(n) for n in np.frombuffer(content[4:head], ">u4"))
    expected = math.prod(shape)
    if len(content) - head != expected:
        raise DataError(
            f"{path}: has {len(content) - head} values, expected {expected} for the shape {shape} in its header; "
            "the file is cut short or damaged, fetch it again"
        )
    return np.frombuffer(content, np.uint8, offset=head).reshape(shape)
