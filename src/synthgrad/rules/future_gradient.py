"""The auxiliary task of recurrent networks: to foresee the synthetic gradient of the next boundary (DNI §2.2)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..core import ConfigError, ShapeError

__all__ = ["FutureGradient"]


class FutureGradient(nn.Module):
    """A head on the features inside an unroll, which predicts the ``δ̂`` that the state at its end will get.

    ``weight · mean over examples and steps of ‖P(z_t) − δ̂‖²``, DNI §2.2, *DNI + Aux*. Its gradient flows into
    the features: the network is to keep what tells of credit that lies beyond the unroll. It counts among
    the losses of the unroll, so the synthetic gradient of the state at its start tells of it too.

    Args:
        features: ``H``, width of the features ``(..., H)`` that it reads, such as the outputs of an LSTM.
        state_features: ``F``, width of the flat state.
        hidden: widths of its hidden layers; ``()`` is linear.
        weight: of its loss (1 in the paper, as recalled).

    Raises:
        ConfigError: if a width is under 1, or the weight negative or not finite.
    """

    def __init__(
        self,
        features: int,
        state_features: int,
        hidden: Sequence[int] = (),
        *,
        weight: float = 1.0,
    ) -> None:
        super().__init__()
        if min(features, state_features, *hidden) < 1:
            raise ConfigError(
                f"features={features}, state_features={state_features}, hidden={tuple(hidden)}: expected widths "
                "of at least 1"
            )
        if not math.isfinite(weight) or weight < 0:
            raise ConfigError(f"weight={weight}: expected a finite number, 0 or more")
        self.weight = weight
        self.features, self.state_features = features, state_features
        sizes = [features, *hidden]
        layers: list[nn.Module] = []
        for a, b in zip(sizes, sizes[1:], strict=False):
            layers += [nn.Linear(a, b), nn.ReLU()]
        last = nn.Linear(sizes[-1], state_features)
        nn.init.zeros_(last.weight)  # synthetic gradients begin at zero, and so does what foresees them
        nn.init.zeros_(last.bias)
        self.model = nn.Sequential(*layers, last)

    def loss(self, features: Tensor, delta: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return the weighted loss, a scalar, mean per example; attached to the head and to the features.

        Args:
            features: ``(B, ..., H)`` from inside the unroll.
            delta: ``(B, F)``, per-example units, detached: the synthetic gradient at its end.
            mask: ``(B, ...)`` bool, False at steps that do not count, such as those that fill up shorter sequences: the
                loss of an example is the mean over the others. None if all count.

        Raises:
            ShapeError: if the features do not fit, or the mask does not fit them.
        """
        if features.ndim < 2 or features.shape[-1] != self.features or features.shape[0] != delta.shape[0]:
            raise ShapeError(
                f"features of shape {tuple(features.shape)}, expected ({delta.shape[0]}, ..., {self.features}): "
                "one row for each sequence, batch dimension first"
            )
        foreseen = self.model(features)  # (B, ..., F)
        target = delta
        while target.ndim < foreseen.ndim:
            target = target.unsqueeze(1)  # one synthetic gradient for all steps of a sequence
        if mask is None:
            return self.weight * self.state_features * (foreseen - target).square().mean()
        if mask.shape != features.shape[:-1] or mask.dtype != torch.bool:
            raise ShapeError(
                f"mask of shape {tuple(mask.shape)} and dtype {mask.dtype}, expected {tuple(features.shape[:-1])} bool: True "
                "where a step of the features counts"
            )
        squares = (foreseen - target).square().sum(-1).masked_fill(~mask, 0.0)  # (B, ...)
        size = features.shape[0]
        counts = mask.reshape(size, -1).sum(1).clamp(min=1)  # (B,)
        return self.weight * (squares.reshape(size, -1).sum(1) / counts).mean()
