"""Clocks for what runs on a processor or an accelerator, and a count of what graphs hold."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

__all__ = ["Clock", "HeldStorages"]


class Clock:
    """Marks moments on a device.

    On CUDA a mark is an event in the stream, so that nobody waits for the device between two of them. On a CPU it is the
    time, and on another accelerator the time when all its work is done.

    Args:
        device: on which the work runs.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device

    @classmethod
    def of(cls, model: nn.Module) -> Clock:
        """Return the clock of the device on which a model's first parameter lies."""
        first = next(model.parameters(), None)
        return cls(torch.device("cpu") if first is None else first.device)

    def mark(self) -> Any:
        """Return the moment at hand."""
        if self.device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)
            event.record(torch.cuda.current_stream(self.device))
            return event
        if self.device.type != "cpu":
            torch.accelerator.synchronize(self.device)
        return time.perf_counter()

    def settle(self) -> None:
        """Wait until every mark has been reached."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def seconds(self, start: Any, end: Any) -> float:
        """Return the seconds from one mark to another; of CUDA's after `settle` only."""
        if self.device.type == "cuda":
            return start.elapsed_time(end) / 1e3
        return end - start


class HeldStorages:
    """Counts the bytes of the storages that the graph made in its ``with`` block holds, each once for every part.

    Nothing can run backward through that graph.

    Args:
        excluded: tensors whose storages are not counted: parameters and buffers, which are kept anyway.
    """

    def __init__(self, excluded: Iterable[Tensor]) -> None:
        self._excluded = {t.untyped_storage().data_ptr() for t in excluded}
        self._parts: list[dict[int, int]] = [
            {}
        ]  # bytes by address: the graph keeps the storages, so none is used again
        self._hooks = saved_tensors_hooks(self._pack, self._unpack)

    def __enter__(self) -> HeldStorages:
        self._hooks.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._hooks.__exit__(*error)

    @property
    def sizes(self) -> list[int]:
        """Bytes held by each part."""
        return [sum(part.values()) for part in self._parts]

    def next_part(self) -> None:
        """Count what follows for the next part."""
        self._parts.append({})

    def _pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._excluded:
            self._parts[-1][storage.data_ptr()] = storage.nbytes()
        return tensor.detach()  # an output that is saved by its own node would keep that node alive

    @staticmethod
    def _unpack(tensor: Tensor) -> Tensor:
        return tensor
