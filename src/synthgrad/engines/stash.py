"""Keeps the weights that a graph was built with, while its module goes on learning."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

__all__ = ["keeping_weights"]


def keeping_weights(model: nn.Module, *, needed: bool) -> AbstractContextManager[object]:
    """Return a context in which graphs save copies of the model's parameters and buffers.

    A graph that is used some steps after it was built belongs to the weights of then (weight stashing,
    PipeDream): without copies an optimizer would have changed them behind its back, which PyTorch refuses.

    Args:
        model: the network.
        needed: False for a context that does nothing.
    """
    if not needed:
        return nullcontext()
    own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}

    def pack(tensor: Tensor) -> Tensor:
        return tensor.clone() if tensor.untyped_storage().data_ptr() in own else tensor

    return torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
