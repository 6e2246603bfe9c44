"""How many bytes of logits exist at once?"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["LogitsBytes"]


class LogitsBytes(TorchDispatchMode):
    """Counts, inside its ``with`` block, the bytes of the logits that exist: forward, backward and in between.

    Logits are recognised by their size, because they may be made in any form: as ``(B, T, V)``, as parts of rows or of
    the vocabulary, transposed, flattened. Every storage that an operation makes counts, from then until it is freed, if
    the number of its elements is a multiple of ``V``; views and changes in place make none. So probabilities and the
    gradients of logits count too. Parameters and their gradients do not: what was there before, and what has the shape
    of one of the given tensors. No activation may have such a size by chance: see to it that ``V`` divides none.

    Args:
        vocabulary: number of tokens ``V``.
        parameters: tensors whose shapes do not count.

    Attributes:
        peak: most bytes at any time.
        now: bytes that exist.
    """

    def __init__(self, vocabulary: int, parameters: Iterable[Tensor]) -> None:
        super().__init__()
        self.peak = self.now = 0
        self._vocabulary = vocabulary
        self._parameters = list(parameters)
        self._shapes = {p.shape for p in self._parameters}
        self._before = {p.untyped_storage().data_ptr() for p in self._parameters}
        self._seen: dict[int, weakref.ref[torch.UntypedStorage]] = {}  # by id of the storage

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        for value in found if isinstance(found, tuple | list) else (found,):
            if isinstance(value, Tensor):
                self._see(value)
        return found

    def _see(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = id(storage), storage.nbytes()
        if key in self._seen or storage.data_ptr() in self._before:
            return
        elements = size // tensor.itemsize
        counts = elements > 0 and elements % self._vocabulary == 0 and tensor.shape not in self._shapes
        self._seen[key] = weakref.ref(storage, partial(self._gone, key, size if counts else 0))
        if counts:
            self.now += size
            self.peak = max(self.peak, self.now)

    def _gone(self, key: int, size: int, _: object) -> None:
        del self._seen[key]
        self.now -= size
