"""The true messages of a batch, by a pass of its own: what rules would learn from if nothing were bootstrapped."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..core import Decoupled, Units
from ..core.devices import cuda_devices
from ..core.interface import Interface

__all__ = ["true_messages"]


def true_messages(net: Decoupled, loss_of: Callable[[], Tensor]) -> dict[str, Tensor]:
    """Return the true gradient at every interface, ``(B, ...)`` in per-example units, by name.

    The network runs once more, forward and backward, as if it had no cuts. Its buffers (BatchNorm's
    statistics) and the state of random numbers (Dropout) are left as they were, so that the pass which
    learns sees the same.

    Args:
        net: a decoupled network in training mode.
        loss_of: runs ``net.model`` on the batch, returns the loss as the criterion reduces it.
    """
    kept: dict[str, Tensor] = {}

    def keep(interface: Interface, h: Tensor) -> Tensor:
        kept[interface.name] = h
        return h.clone() if interface.copies else h

    buffers = [(b, b.clone()) for b in net.model.buffers()]
    with torch.random.fork_rng(cuda_devices(net)), net.crossed_by(keep):
        loss = loss_of()
        gradients = torch.autograd.grad(loss, list(kept.values()))
    for buffer, before in buffers:
        buffer.copy_(before)
    unscaled = Units(net.units.reduction)
    return {name: unscaled.to_example(g) for name, g in zip(kept, gradients, strict=True)}
