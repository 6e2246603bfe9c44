"""Make the embedded data set from MNIST's official training files.

Usage: python scripts/embed_mnist.py DIR, where DIR holds mnist/train-*-ubyte.gz.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import numpy as np

from synthgrad.lab.tasks.idx import parse_idx, read_bytes

TARGET = Path(__file__).parent.parent / "src/synthgrad/lab/tasks/embedded/mnist_10k.npz"


def main(data_dir: Path) -> None:
    """Draw 1,000 + 200 images of each digit, write them, print the file's SHA-256."""
    images_path = data_dir / "mnist" / "train-images-idx3-ubyte.gz"
    labels_path = data_dir / "mnist" / "train-labels-idx1-ubyte.gz"
    x = parse_idx(read_bytes(images_path), images_path, 3)
    y = parse_idx(read_bytes(labels_path), labels_path, 1)
    rng = np.random.default_rng(20160818)
    drawn = [rng.permutation(np.flatnonzero(y == digit)) for digit in range(10)]
    train = rng.permutation(np.concatenate([d[:1000] for d in drawn]))
    test = rng.permutation(np.concatenate([d[1000:1200] for d in drawn]))
    np.savez_compressed(
        TARGET,
        train_x=x[train],
        train_y=y[train],
        test_x=x[test],
        test_y=y[test],
        train_index=train.astype(np.int32),
        test_index=test.astype(np.int32),
    )
    print(hashlib.sha256(TARGET.read_bytes()).hexdigest())


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
