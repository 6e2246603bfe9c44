"""Ridge regression on running sums: a linear map that is solved for, from what has been seen so far."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .buffers import WideBuffers

__all__ = ["RunningRidge"]


class RunningRidge(WideBuffers):
    """Finds ``W`` with ``y ≈ x W``, near zero where little is known, from weighted sums over all rows seen.

    ``min Σ memory^age ‖x W − y‖² + ridge · (N + n) · Σ_j s_j ‖W_j‖²``. The ``n`` inputs ``x`` are made of blocks, such
    as gradients, activations and a constant, whose sizes may differ by any factor: ``s_j`` is the mean square of the
    entries of the block that input ``j`` belongs to. ``N`` is the weighted number of rows, so that the pull towards zero
    does not fade as rows come in; the ``n`` keeps rows that are fewer than the inputs from being fitted as they are. With
    inputs that are not correlated, ``ridge`` 1 goes half the way.

    All of it are buffers, at least in float32 whatever the dtype of the network, and solved for in float64 where the
    device has it.

    Args:
        blocks: number of inputs of each block.
        outputs: number of entries of ``y``.
        memory: weight of the past, from one addition to the next.
        ridge: pull towards zero.
    """

    def __init__(self, blocks: Sequence[int], outputs: int, *, memory: float, ridge: float) -> None:
        super().__init__()
        self.blocks = tuple(blocks)
        self.memory = memory
        self.ridge = ridge
        inputs = sum(self.blocks)
        self.products: Tensor
        self.targets: Tensor
        self.rows: Tensor
        self.weight: Tensor
        self.register_buffer("products", torch.zeros(inputs, inputs))  # Σ xᵀ x
        self.register_buffer("targets", torch.zeros(inputs, outputs))  # Σ xᵀ y
        self.register_buffer("rows", torch.zeros(()))  # Σ 1
        self.register_buffer("weight", torch.zeros(inputs, outputs))

    @torch.no_grad()
    def add(
        self, inputs: Sequence[Tensor], targets: Tensor, counts: Tensor, allowed: Tensor | None = None
    ) -> Tensor:
        """Add rows to the sums, unless what comes of it is not finite; return whether they were added, a scalar.

        Nothing waits for the device.

        Args:
            inputs: ``(N, n)`` for each block.
            targets: ``(N, outputs)``.
            counts: ``(N, 1)`` bool, False where a row is left out.
            allowed: a scalar bool, False where nothing is to be added; None for True.
        """
        with torch.autocast(targets.device.type, enabled=False):
            x = torch.cat([v.to(self.products.dtype) for v in inputs], 1) * counts
            sums = (
                (self.products, torch.addmm(self.products, x.t(), x, beta=self.memory)),
                (self.targets, torch.addmm(self.targets, x.t(), targets.to(x.dtype), beta=self.memory)),
                (self.rows, self.rows * self.memory + counts.sum()),
            )
        right = torch.stack([new.isfinite().all() for _, new in sums]).all()
        right = right if allowed is None else right & allowed
        for old, new in sums:
            old.copy_(torch.where(right, new, old))
        return right

    @torch.no_grad()
    def solve(self) -> None:
        """Solve for the map; it stays as it is where there is no finite solution."""
        wide = torch.float32 if self.products.device.type == "mps" else torch.float64
        products, targets = self.products.to(wide), self.targets.to(wide)
        squares = torch.cat([d.mean().expand(len(d)) for d in products.diagonal().split(self.blocks)])
        # Blocks of unit mean square: what is solved for is well conditioned, and the ridge the same for all. A block of
        # zeros has nothing to say, and keeps a weight of zero.
        scale = (self.rows.to(wide) / squares).sqrt()
        scale = torch.where(scale.isfinite(), scale, torch.zeros_like(scale)).unsqueeze(1)
        normed = products * scale * scale.t()
        normed.diagonal().add_(self.ridge * (self.rows + len(scale)))
        factor, failed = torch.linalg.cholesky_ex(normed)
        weight = (torch.cholesky_solve(targets * scale, factor) * scale).to(self.weight.dtype)
        right = (failed == 0) & weight.isfinite().all()
        self.weight.copy_(torch.where(right, weight, self.weight))

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        """Return ``x W``, ``(N, outputs)``, in the dtype of the sums.

        Args:
            inputs: ``(N, n)`` for each block.
        """
        weights = self.weight.split(self.blocks)
        with torch.autocast(self.weight.device.type, enabled=False):
            found = inputs[0].to(self.weight.dtype) @ weights[0]
            for x, weight in zip(inputs[1:], weights[1:], strict=True):
                found = torch.addmm(found, x.to(weight.dtype), weight)
        return found
