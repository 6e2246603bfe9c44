"""What a worker asks of a method, whichever it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ....core.modes import evaluating

__all__ = ["Program", "forward_through"]


class Program(Protocol):
    """One method's part in one process.

    Attributes:
        rows: the rows of a batch that this process trains on.
        reads_input: whether it reads the inputs too, not the targets alone.
        threads: number of threads that it computes with.
    """

    rows: slice
    reads_input: bool
    threads: int

    def step(self, x: Tensor | None, y: Tensor) -> Tensor | None:
        """Train on a batch, optimizer included; return the loss where it is known."""
        ...

    def predict(self, x: Tensor) -> Tensor | None:
        """Return the output for inputs in one process, None in all others. All must call it."""
        ...

    def facts(self) -> dict[str, Any]:
        """Return figures of this process so far, such as ``sent_bytes``; numbers by name."""
        ...

    def close(self) -> None:
        """Part from the other processes. All must call it."""
        ...


@torch.no_grad()
def forward_through(
    x: Tensor, modules: Mapping[int, nn.Module], owners: Sequence[int], at_end: Sequence[Tensor]
) -> Tensor | None:
    """Run forward through parts that lie in several processes; return the output in the last part's process.

    Args:
        x: inputs, ``(B, ...)``, in all processes.
        modules: parts of this process, by number.
        owners: rank of each part.
        at_end: what is at the end of each part, of one row.
    """
    rank = dist.get_rank()
    for k, owner in enumerate(owners):
        if owner != rank:
            continue
        if k and owners[k - 1] != rank:
            x = torch.empty(len(x), *at_end[k - 1].shape[1:])
            dist.recv(x, owners[k - 1])
        with evaluating(modules[k]):
            x = modules[k](x)
        if k + 1 == len(owners):
            return x
        if owners[k + 1] != rank:
            dist.send(x, owners[k + 1])
    return None
