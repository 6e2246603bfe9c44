"""On which accelerators a network lies, whose random state is to be left alone."""

from __future__ import annotations

from torch import nn

__all__ = ["cuda_devices"]


def cuda_devices(model: nn.Module) -> list[int]:
    """Return the indices of the CUDA devices of a model's parameters."""
    return sorted({p.device.index for p in model.parameters() if p.is_cuda})
