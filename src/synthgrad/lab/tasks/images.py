"""Labelled data as tensors on a device, and random batches of its indices."""

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
    """Labelled examples.

    Attributes:
        x: inputs, ``(N, C, Y, X)`` float32 in [0, 1] for images. The user's own may be ``(N, ...)`` float32, or int64 for
            token ids.
        y: class of each example, ``(N,)`` int64.
    """

    x: Tensor
    y: Tensor

    def __len__(self) -> int:
        return self.y.shape[0]

    def to(self, device: torch.device, layout: torch.memory_format = torch.preserve_format) -> Split:
        """Return the split on a device; images get the memory layout, and so do batches indexed from them."""
        if self.x.ndim != 4:  # no images
            layout = torch.preserve_format
        return Split(self.x.to(device, memory_format=layout), self.y.to(device))


@dataclass(frozen=True, slots=True)
class LabelledData:
    """A labelled data set with a training and a test part.

    Attributes:
        name: name in ``synthgrad list``, or the file or factory of the user's own data.
        train, test: the official parts; after `hold_out` both come from the training part.
        classes: number of classes.
        sha256: SHA-256 of the decompressed source, for records.
        mirrored: whether a mirrored image belongs to the same class.
    """

    name: str
    train: Split
    test: Split
    classes: int
    sha256: str
    mirrored: bool = False

    def to(self, device: torch.device, layout: torch.memory_format = torch.preserve_format) -> LabelledData:
        """Return the data set on a device, images in a memory layout."""
        return replace(self, train=self.train.to(device, layout), test=self.test.to(device, layout))

    def hold_out(self, n: int) -> LabelledData:
        """Return a data set that is tested on ``n`` examples taken out of the training part.

        Settings are chosen on such data, so that the true test part stays unseen. The examples are the same in every
        call.

        Raises:
            ConfigError: if ``n`` leaves nothing to train on.
        """
        total = len(self.train)
        if not 0 < n < total:
            raise ConfigError(f"hold_out={n}: expected 1 to {total - 1} of {total} training examples")
        order = torch.randperm(total, generator=torch.Generator().manual_seed(7)).to(self.train.y.device)
        kept, out = order[n:], order[:n]
        return replace(
            self,
            train=Split(self.train.x[kept], self.train.y[kept]),
            test=Split(self.train.x[out], self.train.y[out]),
        )


def to_split(images: NDArray[np.uint8], labels: NDArray[np.integer], classes: int, source: str) -> Split:
    """Convert images of bytes, ``(N, C, Y, X)`` or ``(N, Y, X)``, and their labels to a `Split`.

    Args:
        images: pixels from 0 to 255.
        labels: class of each image, ``(N,)``.
        classes: number of classes.
        source: file or data set, for error messages.

    Raises:
        DataError: if there are no images, their number differs from that of the labels, or a label is out of range.
    """
    if len(images) == 0:
        raise DataError(f"{source}: the data set is empty; expected at least one example")
    if len(images) != len(labels):
        raise DataError(
            f"{source}: {len(images)} images but {len(labels)} labels, expected as many; fetch the files again, they do "
            "not belong together"
        )
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= classes:
        raise DataError(
            f"{source}: has the label {low if low < 0 else high}, expected 0 to {classes - 1}; fetch the files again"
        )
    x = torch.from_numpy(images.astype(np.float32)).div_(255)
    return Split(x.unsqueeze(1) if x.ndim == 3 else x, torch.from_numpy(labels.astype(np.int64)))


def draw_batches(num_examples: int, batch_size: int, seed: int, device: torch.device) -> Iterator[Tensor]:
    """Yield batches of indices ``(batch_size,)`` int64 endlessly, shuffled anew in every epoch.

    The last incomplete batch of an epoch is dropped. The order depends on ``seed`` alone, so every method sees the same
    batches.

    Raises:
        ConfigError: if a batch is larger than the data set.
    """
    if not 1 <= batch_size <= num_examples:
        raise ConfigError(
            f"batch size {batch_size}: expected 1 to {num_examples}, the number of training examples; use a smaller batch"
        )
    generator = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(num_examples, generator=generator).to(device)
        for start in range(0, num_examples - batch_size + 1, batch_size):
            yield order[start : start + batch_size]
