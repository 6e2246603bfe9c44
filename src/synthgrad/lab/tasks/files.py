"""Finds data files in the data directory or the cache, and downloads missing ones."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import pooch

from ...core import DataError

__all__ = ["DATA_DIR_VARIABLE", "SOURCES", "fetch", "find", "search_path"]

#: Environment variable that names the data directory.
DATA_DIR_VARIABLE = "SYNTHGRAD_DATA"

_MNIST = "https://ossci-datasets.s3.amazonaws.com/mnist"

#: Address and hash of each file that can be downloaded.
SOURCES = {
    "mnist/train-images-idx3-ubyte.gz": (
        f"{_MNIST}/train-images-idx3-ubyte.gz",
        "md5:f68b3c2dcbeaaa9fbdd348bbdeb94873",
    ),
    "mnist/train-labels-idx1-ubyte.gz": (
        f"{_MNIST}/train-labels-idx1-ubyte.gz",
        "md5:d53e105ee54ea40749a09fcbcd1e9432",
    ),
    "mnist/t10k-images-idx3-ubyte.gz": (
        f"{_MNIST}/t10k-images-idx3-ubyte.gz",
        "md5:9fb629c4189551a2d022fa330f9573f3",
    ),
    "mnist/t10k-labels-idx1-ubyte.gz": (
        f"{_MNIST}/t10k-labels-idx1-ubyte.gz",
        "md5:ec29112dd5afa0611ce80d1b7f02629c",
    ),
    "cifar-10-python.tar.gz": (
        "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
        "md5:c58f30108f718f92721af3b95e74349a",
    ),
    "text/tinyshakespeare.txt": (
        "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
        "sha256:86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
    ),
}


def _cache() -> Path:
    return Path(pooch.os_cache("synthgrad"))


def search_path(data_dir: Path | None) -> list[Path]:
    """Return the directories to search, in order; files are downloaded into the last one, the cache.

    Args:
        data_dir: data directory; None for the one in the environment, if any.

    Raises:
        DataError: if the data directory does not exist.
    """
    named = data_dir or (Path(os.environ[DATA_DIR_VARIABLE]) if os.environ.get(DATA_DIR_VARIABLE) else None)
    if named is None:
        return [_cache()]
    if not named.is_dir():
        raise DataError(
            f"data directory {named}: does not exist; create it, or name another with --data-dir or {DATA_DIR_VARIABLE}"
        )
    return [named, named / "data", _cache()]


def find(data_dir: Path | None, names: Sequence[str]) -> Path | None:
    """Return the path of the first file or folder that exists, or None; names are relative to the search path."""
    for directory in search_path(data_dir):
        for name in names:
            if (path := directory / name).exists():
                return path
    return None


def fetch(data_dir: Path | None, name: str) -> Path:
    """Download a file into the cache, verify it, and return its path.

    Args:
        data_dir: data directory, for error messages.
        name: the file's path inside a data directory.

    Raises:
        DataError: if it cannot be downloaded. The message says where to put the file.
    """
    if name not in SOURCES:
        raise DataError(
            f"{name}: not found, and it cannot be downloaded from anywhere; put the file at "
            f"{search_path(data_dir)[0] / name}, or name the directory that holds {name.split('/')[0]} with "
            f"--data-dir or {DATA_DIR_VARIABLE}"
        )
    address, known_hash = SOURCES[name]
    target = _cache() / name
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if not os.access(target.parent, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise DataError(
            f"{name}: not found, and it cannot be downloaded because the cache folder {_cache()} cannot be "
            f"written ({error.strerror}); put {address} at {name} in a directory of your own, "
            f"and name that with --data-dir or {DATA_DIR_VARIABLE}"
        ) from error
    try:
        return Path(
            pooch.retrieve(
                address,
                known_hash=known_hash,
                fname=target.name,
                path=target.parent,
                progressbar=sys.stderr.isatty(),
            )
        )
    except Exception as error:  # the remedy is the same for every failure
        place = search_path(data_dir)[0] / name
        reason = str(error).split("\n", 1)[0][:120]
        raise DataError(
            f"{name}: not found, and it cannot be downloaded ({type(error).__name__}: {reason}); put the file at "
            f"{place}, or name the directory that holds {name.split('/')[0]} with --data-dir or {DATA_DIR_VARIABLE}"
        ) from error
