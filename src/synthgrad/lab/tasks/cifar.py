"""CIFAR-10 from its standard batches; their pickles are read without running code in them."""

from __future__ import annotations

import hashlib
import io
import pickle
import tarfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...core import DataError
from .files import fetch, find
from .idx import read_bytes
from .images import LabelledData, to_split

__all__ = ["load_cifar10", "parse_batch"]

#: MD5 of the official batches, as listed in public code.
OFFICIAL_MD5 = {
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "test_batch": "40351d587109b95175f43aff81a1287e",
}
FOLDER = "cifar-10-batches-py"

# Functions that the pickle of an array calls, in any version of NumPy; all others are refused.
_ALLOWED = {
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy._core.numeric", "_frombuffer"),
    ("numpy.core.numeric", "_frombuffer"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("_codecs", "encode"),
}


class _ArraysOnly(pickle.Unpickler):
    """An unpickler of arrays, strings, numbers and containers, which refuses everything else."""

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        if (module_name, global_name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it calls {module_name}.{global_name}")
        return super().find_class(module_name, global_name)


def parse_batch(content: bytes, path: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return images ``(N, 3, 32, 32)`` uint8 and labels ``(N,)`` int64 of one batch file.

    Args:
        content: the file's content.
        path: the file's path, for error messages.

    Raises:
        DataError: if the file is damaged, holds something else, or would run code.
    """
    try:
        batch = _ArraysOnly(io.BytesIO(content), encoding="bytes").load()
        images = np.asarray(batch[b"data"])
        labels = np.asarray(batch[b"labels"], np.int64)
    except Exception as error:  # a damaged pickle can raise anything
        reason = " ".join(str(error).split())
        raise DataError(
            f"{path}: is no CIFAR-10 batch ({type(error).__name__}: {reason}); the file is damaged or a different "
            "one, fetch it again"
        ) from error
    if images.dtype != np.uint8 or images.ndim != 2 or images.shape[1] != 3072 or labels.ndim != 1:
        raise DataError(
            f"{path}: holds data of shape {images.shape} and type {images.dtype}, expected (N, 3072) of bytes; fetch it "
            "again"
        )
    if len(images) != len(labels):
        raise DataError(
            f"{path}: holds {len(images)} images but {len(labels)} labels, expected as many; fetch it again"
        )
    return images.reshape(-1, 3, 32, 32), labels


def load_cifar10(data_dir: Path | None) -> LabelledData:
    """Load CIFAR-10: 50,000 training and 10,000 test images, ``(N, 3, 32, 32)``.

    The files are those of ``cifar-10-batches-py/`` below ``data_dir``, or else of the official archive, which is
    downloaded if it is missing.

    Raises:
        DataError: if a file is damaged, or is missing and cannot be downloaded.
    """
    content, paths = _read(data_dir)
    parts = {name: parse_batch(content[name], paths[name]) for name in OFFICIAL_MD5}
    others = [
        n
        for n in OFFICIAL_MD5
        if hashlib.md5(content[n], usedforsecurity=False).hexdigest() != OFFICIAL_MD5[n]
    ]
    if others:
        warnings.warn(
            f"{paths[others[0]].parent}: well-formed, but {len(others)} of {len(OFFICIAL_MD5)} batches are not the "
            "official ones (they may come from JPEG files); results may differ from published ones",
            stacklevel=2,
        )
    train = [parts[f"data_batch_{k}"] for k in range(1, 6)]
    digest = hashlib.sha256("".join(hashlib.sha256(content[n]).hexdigest() for n in OFFICIAL_MD5).encode())
    where = str(paths["test_batch"].parent)
    return LabelledData(
        "cifar10",
        to_split(np.concatenate([x for x, _ in train]), np.concatenate([y for _, y in train]), 10, where),
        to_split(*parts["test_batch"], 10, where),
        10,
        digest.hexdigest(),
        mirrored=True,
    )


def _read(data_dir: Path | None) -> tuple[dict[str, bytes], dict[str, Path]]:
    """Return content and path of every batch, from the folder or else from the archive."""
    folder = find(data_dir, [FOLDER, f"cifar10/{FOLDER}"])
    if folder is not None:
        paths = {name: folder / name for name in OFFICIAL_MD5}
        lost = [str(p) for p in paths.values() if not p.is_file()]
        if lost:
            raise DataError(f"{lost[0]}: missing; put {', '.join(OFFICIAL_MD5)} into the folder")
        return {name: read_bytes(path) for name, path in paths.items()}, paths
    name = "cifar-10-python.tar.gz"
    archive = find(data_dir, [name]) or fetch(data_dir, name)
    try:
        # Decompressed as a whole first, because the checksum stands at the end of a gzip file.
        with tarfile.open(fileobj=io.BytesIO(read_bytes(archive)), mode="r:") as tar:
            content: dict[str, bytes] = {}
            for n in OFFICIAL_MD5:
                member = tar.extractfile(f"{FOLDER}/{n}")
                if member is None:
                    raise KeyError(n)
                content[n] = member.read()
    except (OSError, KeyError, DataError, tarfile.TarError) as error:
        raise DataError(f"{archive}: is damaged ({error}); remove it and fetch it again") from error
    return content, {n: archive / n for n in OFFICIAL_MD5}
