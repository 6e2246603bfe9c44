"""Reader of IDX files, the format of MNIST: a big-endian header, then one byte a value."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...core import DataError

__all__ = ["parse_idx", "read_bytes"]


def read_bytes(path: Path) -> bytes:
    """Return the content of a file, decompressed if its name ends in ``.gz``.

    Raises:
        DataError: if it cannot be read or is damaged; names the file.
    """
    try:
        raw = path.read_bytes()
        return gzip.decompress(raw) if path.suffix == ".gz" else raw
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(
            f"{path}: cannot be read ({error or 'unexpected end of file'}); the file is damaged or cut "
            "short, remove it and fetch it again"
        ) from error


def parse_idx(content: bytes, path: Path, ndim: int) -> NDArray[np.uint8]:
    """Return the array in an IDX file of unsigned bytes.

    Args:
        content: the decompressed file.
        path: its name, for errors.
        ndim: number of dimensions expected (3 for images, 1 for labels).

    Raises:
        DataError: if the header is not that of such a file, or the size does not fit it.
    """
    magic = content[:4]
    if magic != bytes((0, 0, 8, ndim)):
        raise DataError(
            f"{path}: starts with {magic.hex() or 'nothing'}, expected {bytes((0, 0, 8, ndim)).hex()} "
            f"(IDX, unsigned bytes, {ndim} dimensions); this is another file, or a damaged one"
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
            f"{path}: its header says {shape}, {expected} values, but {len(content) - head} are there; "
            "the file is cut short or damaged, fetch it again"
        )
    return np.frombuffer(content, np.uint8, offset=head).reshape(shape)
