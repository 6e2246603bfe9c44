"""MNIST from its standard files, and the subset that the package contains."""

from __future__ import annotations

import hashlib
import io
import warnings
from importlib.resources import files
from pathlib import Path

import numpy as np

from ...core import DataError
from .files import fetch, find
from .idx import parse_idx, read_bytes
from .images import LabelledData, Split, to_split

__all__ = ["load_mnist", "load_mnist_10k"]

#: SHA-256 of the decompressed official files.
SHA256 = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}
EMBEDDED_SHA256 = "e362840e8cdd8544de9bc0ba80e81d1e4deac9578bbbf1eaba086420e4e788f0"


def load_mnist(data_dir: Path | None) -> LabelledData:
    """Load MNIST: 60,000 training and 10,000 test images, ``(N, 1, 28, 28)``.

    The files are ``mnist/*-ubyte.gz``, or the same unpacked, below ``data_dir``; missing files are downloaded.

    Raises:
        DataError: if a file is damaged, or is missing and cannot be downloaded.
    """
    content: dict[str, bytes] = {}
    paths: dict[str, Path] = {}
    for name in SHA256:
        path = find(
            data_dir, [f"mnist/{name}.gz", f"mnist/{name}", f"MNIST/raw/{name}", f"MNIST/raw/{name}.gz"]
        )
        paths[name] = path or fetch(data_dir, f"mnist/{name}.gz")
        content[name] = read_bytes(paths[name])

    def split(part: str) -> Split:
        images, labels = f"{part}-images-idx3-ubyte", f"{part}-labels-idx1-ubyte"
        x = parse_idx(content[images], paths[images], 3)
        y = parse_idx(content[labels], paths[labels], 1)
        return to_split(x, y, 10, str(paths[images].parent))

    digest = hashlib.sha256()
    data = LabelledData("mnist", split("train"), split("t10k"), 10, "")
    for name, expected in SHA256.items():
        found = hashlib.sha256(content[name]).hexdigest()
        digest.update(found.encode())
        if found != expected:
            warnings.warn(
                f"{paths[name]}: well-formed, but not the official file (SHA-256 {found[:12]}…, expected "
                f"{expected[:12]}…); results may differ from published ones",
                stacklevel=2,
            )
    return LabelledData("mnist", data.train, data.test, 10, digest.hexdigest())


def load_mnist_10k() -> LabelledData:
    """Load the embedded subset: 10,000 images to train on and 2,000 to test on, all from MNIST's training part.

    Raises:
        DataError: if the installed file is damaged.
    """
    source = files("synthgrad.lab.tasks").joinpath("embedded").joinpath("mnist_10k.npz")
    raw = source.read_bytes()
    found = hashlib.sha256(raw).hexdigest()
    if found != EMBEDDED_SHA256:
        raise DataError(
            f"{source}: the embedded data set is damaged (SHA-256 {found[:12]}…); reinstall synthgrad"
        )
    with np.load(io.BytesIO(raw), allow_pickle=False) as arrays:
        train = to_split(arrays["train_x"], arrays["train_y"], 10, "mnist-10k")
        test = to_split(arrays["test_x"], arrays["test_y"], 10, "mnist-10k")
    return LabelledData("mnist-10k", train, test, 10, found)
