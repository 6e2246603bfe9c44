"""The state of the random number generators that networks commonly use."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

import torch

__all__ = ["RandomState"]


class RandomState:
    """A copy of the state of PyTorch's generators, on the CPU and on CUDA devices, and of Python's
    ``random``.

    Args:
        devices: the indices of the CUDA devices.
    """

    def __init__(self, devices: Sequence[int]) -> None:
        self._devices = devices
        self._cpu = torch.get_rng_state()
        self._cuda = [torch.cuda.get_rng_state(k) for k in devices]
        self._python = random.getstate()

    def restore(self) -> None:
        """Set all generators to this state."""
        torch.set_rng_state(self._cpu)
        for k, state in zip(self._devices, self._cuda, strict=True):
            torch.cuda.set_rng_state(state, k)
        random.setstate(self._python)

    def state_dict(self) -> dict[str, Any]:
        """Return the state as plain containers of tensors."""
        return {"cpu": self._cpu, "cuda": self._cuda, "python": self._python}

    @classmethod
    def from_state(cls, state: Mapping[str, Any], devices: Sequence[int]) -> RandomState:
        """Create the object from what `state_dict` returned."""
        found = cls(devices)
        version, numbers, gauss = state["python"]
        found._cpu, found._cuda = state["cpu"], list(state["cuda"])
        found._python = version, tuple(numbers), gauss
        return found
