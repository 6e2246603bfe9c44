"""The network that all methods train, and its parts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ...tasks import fully_connected
from ..batches import CLASSES

__all__ = ["CLASSES", "IN_SHAPE", "Size", "adam", "network", "split_names"]

IN_SHAPE = (1, 28, 28)


@dataclass(frozen=True, slots=True)
class Size:
    """What is trained.

    Attributes:
        width, layers, batch_size: of the network, the output layer included, and of all processes' batch together.
        stages: number of processes.
        threads: threads of each process.
        seed: seed of weights and data.
    """

    width: int
    layers: int
    batch_size: int
    stages: int
    threads: int
    seed: int


def network(size: Size) -> nn.Sequential:
    """Return the whole network, with the same weights in every process."""
    with torch.random.fork_rng():
        torch.manual_seed(size.seed)
        return fully_connected(IN_SHAPE, CLASSES, size.layers, size.width)


def split_names(model: nn.Sequential, parts: int) -> list[list[str]]:
    """Return the names of the layers of each part: as many hidden layers in each, later ones have one more.

    The output layer costs next to nothing and is of the last part.
    """
    names = [name for name, _ in model.named_children()]
    hidden = len(names) - 1
    ends = [hidden * (k + 1) // parts for k in range(parts)]
    found = [names[a:b] for a, b in zip([0, *ends], ends, strict=False)]
    found[-1].append(names[-1])
    return found


def adam(parameters: Any, lr: float) -> torch.optim.Optimizer:
    """Return the optimizer that all methods have."""
    return torch.optim.Adam(parameters, lr, fused=True)
