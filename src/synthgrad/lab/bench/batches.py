"""Batches that are timed: embedded digits, or noise where nobody looks at what is on the images."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from ...core import ConfigError
from ..tasks import load

__all__ = ["CLASSES", "DATA", "Batches", "check_batch_sizes", "digits", "noise"]

DATA = "mnist-10k"
CLASSES = 10
_NUM_BATCHES = 16

Batches = list[tuple[Tensor, Tensor]]


def check_batch_sizes(batch_sizes: Iterable[int]) -> None:
    """Raise `ConfigError` for a batch that is larger than the data, or too small for BatchNorm."""
    most = len(load(DATA).train)
    for batch_size in batch_sizes:
        if not 2 <= batch_size <= most:
            raise ConfigError(f"batch size {batch_size}: expected 2 to {most}")


def digits(batch_size: int, seed: int, device: str) -> Batches:
    """Return batches of embedded digits, inputs ``(B, 1, 28, 28)`` and targets ``(B,)``, in an order by the seed."""
    train = load(DATA).train.to(torch.device(device))
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))
    starts = [k * batch_size % (len(train) - batch_size + 1) for k in range(_NUM_BATCHES)]
    ids = [order[s : s + batch_size].to(train.y.device) for s in starts]
    return [(train.x[i], train.y[i]) for i in ids]


def noise(batch_size: int, seed: int, device: str) -> Batches:
    """Return batches of noise of the size of CIFAR-10's images, ``(B, 3, 32, 32)``, channels last."""
    generator = torch.Generator().manual_seed(seed)
    made: Batches = []
    for _ in range(_NUM_BATCHES):
        x = torch.rand(batch_size, 3, 32, 32, generator=generator)
        y = torch.randint(CLASSES, (batch_size,), generator=generator)
        made.append((x.to(device, memory_format=torch.channels_last), y.to(device)))
    return made
