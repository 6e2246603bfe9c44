"""A labelled image data set as tensors on the device, and batches drawn from it by a generator."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...core import ConfigError, DataError

__all__ = ["LabelledData", "Split", "draw_batches", "to_split"]


@dataclass(frozen=True, slots=True)
class Split:
    """Examples.

    Attributes:
        x: ``(N, C, Y, X)`` float32 in [0, 1].
        y: ``(N,)`` int64.
    """

    x: Tensor
    y: Tensor

    def __len__(self) -> int:
        return self.y.shape[0]

    def to(self, device: torch.device, layout: torch.memory_format = torch.preserve_format) -> Split:
        """Return the split on a device, whole; batches of images taken from it have its layout too."""
        if self.x.ndim != 4:  # no images
            layout = torch.preserve_format
        return Split(self.x.to(device, memory_format=layout), self.y.to(device))


@dataclass(frozen=True, slots=True)
class LabelledData:
    """A data set.

    Attributes:
        name: as in ``synthgrad list``.
        train, test: the official parts (or what is held out of the former, see `hold_out`).
        classes: number of classes.
        sha256: of the decompressed source, for the record.
        mirrored: a mirrored image is one of the same class.
    """

    name: str
    train: Split
    test: Split
    classes: int
    sha256: str
    mirrored: bool = False

    def to(self, device: torch.device, layout: torch.memory_format = torch.preserve_format) -> LabelledData:
        """Return the data set on a device, whole, in a memory layout."""
        return replace(self, train=self.train.to(device, layout), test=self.test.to(device, layout))

    def hold_out(self, n: int) -> LabelledData:
        """Return a data set whose test part is ``n`` examples taken out of the training part.

        For selections: the true test part is gone from it. The examples are the same at every call.

        Raises:
            ConfigError: if ``n`` leaves nothing to train on.
        """
        total = len(self.train)
        if not 0 < n < total:
            raise ConfigError(f"hold out {n} of {total} training examples: expected 1 to {total - 1}")
        order = torch.randperm(total, generator=torch.Generator().manual_seed(7)).to(self.train.y.device)
        kept, out = order[n:], order[:n]
        return replace(
            self,
            train=Split(self.train.x[kept], self.train.y[kept]),
            test=Split(self.train.x[out], self.train.y[out]),
        )


def to_split(images: NDArray[np.uint8], labels: NDArray[np.integer], classes: int, what: str) -> Split:
    """Return images ``(N, C, Y, X)`` or ``(N, Y, X)`` of bytes and their labels as a `Split`.

    Raises:
        DataError: if there are none, the numbers differ, or a label is out of range.
    """
    if len(images) == 0:
        raise DataError(f"{what}: the data set is empty; expected at least one example")
    if len(images) != len(labels):
        raise DataError(
            f"{what}: {len(images)} images but {len(labels)} labels; the files do not belong together"
        )
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= classes:
        raise DataError(f"{what}: label {low if low < 0 else high} found, expected 0 to {classes - 1}")
    x = torch.from_numpy(images.astype(np.float32)).div_(255)
    return Split(x.unsqueeze(1) if x.ndim == 3 else x, torch.from_numpy(labels.astype(np.int64)))


def draw_batches(num_examples: int, batch_size: int, seed: int, device: torch.device) -> Iterator[Tensor]:
    """Yield index tensors ``(batch_size,)`` int64 without end: epoch after epoch, shuffled anew.

    The rest of an epoch that fills no batch is left out. The order depends on ``seed`` alone, so every
    method sees the same batches.

    Raises:
        ConfigError: if a batch is larger than the data set.
    """
    if not 1 <= batch_size <= num_examples:
        raise ConfigError(
            f"batch size {batch_size}: expected 1 to {num_examples}, the number of training examples"
        )
    generator = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(num_examples, generator=generator).to(device)
        for start in range(0, num_examples - batch_size + 1, batch_size):
            yield order[start : start + batch_size]
