"""How many bytes does the autograd graph hold for backward passes that are still to come?"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

__all__ = ["HeldBytes"]


class _SavedTensor:
    """What takes a saved tensor's place in the graph; its end is the release of the tensor."""

    def __init__(self, owner: HeldBytes, tensor: Tensor) -> None:
        self.tensor = tensor.detach()  # an output saved by its own node would keep that node alive
        self._owner = owner
        self._key = tensor.untyped_storage().data_ptr()
        owner.hold(self._key, tensor.untyped_storage().nbytes())

    def __del__(self) -> None:
        self._owner.release(self._key)


class HeldBytes:
    """Counts, inside its ``with`` block, the bytes of the storages that graphs hold, each once.

    What was there before (parameters, buffers, the batch) is not counted: it is kept anyway. Nor is what
    is not in a graph: gradients, optimizer state, credits. Of nested counters the innermost counts. What is
    held when the block ends is followed until it is released.

    Args:
        excluded: tensors whose storages are not counted.

    Attributes:
        peak: most bytes held at any time.
        now: bytes held.
    """

    def __init__(self, excluded: Iterable[Tensor]) -> None:
        self.peak = self.now = 0
        self._excluded = {t.untyped_storage().data_ptr() for t in excluded}
        self._holds: dict[int, list[int]] = {}  # of a storage: [holders, bytes]
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, self._unpack)

    def __enter__(self) -> HeldBytes:
        self._hooks.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._hooks.__exit__(*error)

    def hold(self, key: int, size: int) -> None:
        """Count one more holder of a storage."""
        if key in self._excluded:
            return
        entry = self._holds.setdefault(key, [0, size])
        if entry[0] == 0:
            self.now += size
            self.peak = max(self.peak, self.now)
        entry[0] += 1

    def release(self, key: int) -> None:
        """Count one holder less."""
        entry = self._holds.get(key)
        if entry is None:
            return
        entry[0] -= 1
        if entry[0] == 0:
            self.now -= entry[1]
            del self._holds[key]

    def _pack(self, tensor: Tensor) -> _SavedTensor:
        return _SavedTensor(self, tensor)

    @staticmethod
    def _unpack(held: _SavedTensor) -> Tensor:
        return held.tensor
