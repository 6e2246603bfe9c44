"""Interlocked local losses: each module learns from the local loss of the module above."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from ..core import Credit, Info
from .local_loss import LocalLoss

__all__ = ["InterlockedLoss"]


class InterlockedLoss(LocalLoss):
    """The module below learns from the local loss at the *next* interface, one hop away.

    Interlocking backpropagation with two modules for each loss (Gomez et al. 2020, *Interlocking Backpropagation:
    Improving depthwise model-parallelism*). At every interface a classifier on ``h_k`` has the loss ``ℓ_k``. The
    classifier descends ``ℓ_k``; module ``k + 1`` sends down ``∂ℓ_{k+1}/∂h_k`` at once, and module ``k`` waits for that:
    the gradient crosses one module, however deep the network is. The module below the last cut learns from the
    criterion. So a module waits for one forward and one backward pass of the module above, and no longer.

    The credit's ``delta`` is what the module would have learned from by `LocalLoss`; a monitor compares it with the
    message. `InProcess` and `Stages` take this rule; engines that run each module backward once refuse it.

    Args:
        classes: as in `LocalLoss`, and so are the others.
        head: factory of the classifier.
        loss: of the head's outputs and the context.
        ignore_index: class index that means no label.

    Raises:
        ConfigError: as `LocalLoss` does.
    """

    waits = True
    sends_ahead = True

    def credit(self, h: Tensor, info: Info) -> Credit:
        found = super().credit(h, info)
        return replace(found, wait=True, sends=found.delta)
