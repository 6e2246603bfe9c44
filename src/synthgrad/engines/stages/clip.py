"""Gradient clipping over all stages: one norm, as if the network were in one process."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ...core import ConfigError
from .coordinator import Coordinator

__all__ = ["Clip"]


class Clip:
    """Scales the gradients of a stage so that the norm of the gradients of all stages together is limited.

    The norm is that of all gradients of a step, ``√Σₖ ‖gₖ‖²``, as ``torch.nn.utils.clip_grad_norm_`` computes
    it for a whole network. If answers are late, the gradients of the stages in one step belong to different
    batches.

    Args:
        most: the largest norm.
        module: the module of this stage.
        replicas: the number of copies of every stage, which have equal gradients.
        coordinator: the coordinator of all ranks.
        timeout_s: how long to wait for the others, in seconds.

    Raises:
        ConfigError: if the norm is not above 0.
    """

    def __init__(
        self, most: float, module: nn.Module, replicas: int, coordinator: Coordinator, timeout_s: float
    ) -> None:
        if not most > 0:
            raise ConfigError(f"clip_norm={most}: expected a norm over 0, or None")
        self._most = most
        self._parameters = list(module.parameters())
        self._replicas = replicas
        self._coordinator = coordinator
        self._timeout_s = timeout_s

    def __call__(self) -> None:
        """Clip the gradients. Blocks until all stages have called it, which they must do in every step.

        Raises:
            StageError: if another process has stopped, or does not come.
        """
        grads = [p.grad for p in self._parameters if p.grad is not None]
        like = self._parameters[0] if self._parameters else torch.zeros(())
        square = torch.zeros((), dtype=torch.float64, device=like.device)
        for g in grads:
            square += g.double().square().sum()
        total = (self._sum(square) / self._replicas).sqrt()
        scale = (self._most / (total + 1e-6)).clamp(max=1.0)
        for g in grads:
            g.mul_(scale.to(g.dtype))

    def _sum(self, square: Tensor) -> Tensor:
        return self._coordinator.transport.sum(
            square, self._coordinator.all_ranks_check(self._timeout_s, "clip_norm")
        )
