"""How many bytes does the autograd graph hold for backward passes that are still to come?"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

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

    PyTorch asks the innermost hooks for saved tensors alone. Where the code inside has hooks of its own, as an engine has
    that keeps the weights of a forward pass, what these make of a tensor is counted; hooks that were made before the
    block, and those that make no tensors, are not seen.

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
        self._hooks = saved_tensors_hooks(self._pack, self._unpack)
        self._replaced: Any = None

    def __enter__(self) -> HeldBytes:
        self._replaced = torch.autograd.graph.saved_tensors_hooks
        torch.autograd.graph.saved_tensors_hooks = self._counted_hooks()
        self._hooks.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._hooks.__exit__(*error)
        torch.autograd.graph.saved_tensors_hooks = self._replaced

    def _counted_hooks(self) -> type[saved_tensors_hooks]:
        """Return a class that stands for PyTorch's inside the block: hooks whose tensors are counted."""
        counter = self

        class Counted(saved_tensors_hooks):
            def __init__(self, pack: Callable[[Tensor], Any], unpack: Callable[[Any], Tensor]) -> None:
                def pack_counted(tensor: Tensor) -> Any:
                    made = pack(tensor)
                    return counter._pack(made) if isinstance(made, Tensor) else made

                def unpack_counted(held: Any) -> Tensor:
                    return unpack(held.tensor if isinstance(held, _SavedTensor) else held)

                super().__init__(pack_counted, unpack_counted)

        return Counted

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
