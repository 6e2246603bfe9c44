"""What rules keep in buffers: a count that is read without waiting for the device, and sums that need their precision."""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import nn

__all__ = ["Counting", "WideBuffers"]


class Counting(nn.Module):
    """A module that counts: in a buffer, for the state dict, and in a number, which it reads without asking the device."""

    _counter_name = ""
    _count: int | None = 0  # None after loading

    def _register_counter(self, name: str) -> None:
        """Make the buffer, at zero."""
        self.register_buffer(name, torch.zeros((), dtype=torch.long))
        self._counter_name = name

    def _counted(self) -> int:
        if self._count is None:
            self._count = int(self.get_buffer(self._counter_name))
        return self._count

    def _tick(self) -> int:
        """Count one more; return how many there are now."""
        self._count = self._counted() + 1
        self.get_buffer(self._counter_name).fill_(self._count)
        return self._count

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._count = None


class WideBuffers(nn.Module):
    """A module whose own buffers follow the network, but never into half precision: long sums would be lost in it."""

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        before = dict(self.named_buffers(recurse=False))
        super()._apply(fn, recurse)
        for name, old in before.items():
            now = self._buffers[name]
            if now is not None and now.is_floating_point() and now.dtype.itemsize < 4:
                self._buffers[name] = old.to(now.device)
        return self
