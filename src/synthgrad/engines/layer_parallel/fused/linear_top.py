"""The last modules if they are linear: written out, so that autograd runs the criterion only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ....core import ConfigError, Units
from ...base import Criterion, reduce_loss
from ...parts.sequences import has_hooks
from ..stack import is_vmap_error
from ..storage import GradientTable, StackedParameter
from .patterns import parts_of

__all__ = ["LinearTopModules", "linear_layer"]


def linear_layer(module: nn.Module) -> nn.Linear | None:
    """Return the linear layer that a module consists of.

    None for other modules, or if a parameter is frozen.
    """
    parts = parts_of(module)
    if len(parts) != 1 or type(parts[0]) is not nn.Linear or parts[0].bias is None or has_hooks(parts[0]):
        return None
    return parts[0] if all(p.requires_grad for p in parts[0].parameters()) else None


class LinearTopModules:
    """Like `TopModules`, for linear layers: the scores are ``h Wᵀ + b``.

    Args:
        layers: the linear layers, one for each run.
        criterion: the user's criterion. PyTorch's own cross entropy of class indices needs no graph if there
            is one run.
        units: how the criterion reduces.
    """

    def __init__(self, layers: Sequence[nn.Linear], criterion: Criterion, units: Units) -> None:
        self._weight = StackedParameter([layer.weight for layer in layers])  # (runs, classes, H)
        self._bias = StackedParameter([layer.bias for layer in layers])
        self._criterion = criterion
        self._units = units
        self._runs = len(layers)
        self.stacked = [self._weight, self._bias]
        self._is_cross_entropy = self._runs == 1 and _is_cross_entropy(criterion)

    def register(self, gradients: GradientTable, since: Sequence[int]) -> None:
        """Register where the gradients will be written, and from which step on."""
        for stacked_parameter in (self._weight, self._bias):
            stacked_parameter.register(gradients, since)

    @torch.no_grad()
    def run(self, h: Tensor, target: Any) -> tuple[Tensor, Tensor]:
        """Learn from a batch; return the losses, ``(runs,)``, and the gradient of ``h`` in the criterion's
        units.
        """
        weight, bias = self._weight, self._bias
        # (runs, B, classes)
        scores = torch.baddbmm(bias.values.unsqueeze(1), h, weight.values.transpose(1, 2))
        losses, grad = self._criticise(scores, target)
        torch.bmm(grad.transpose(1, 2), h, out=weight.out)
        torch.sum(grad, 1, out=bias.out)
        return losses, torch.bmm(grad, weight.values)

    def _criticise(self, scores: Tensor, target: Any) -> tuple[Tensor, Tensor]:
        """Return the losses, and the gradient of the scores."""
        if self._is_cross_entropy and isinstance(target, Tensor) and not target.is_floating_point():
            return _cross_entropy(scores, target)
        with torch.enable_grad():
            leaf = scores.requires_grad_()
            if self._runs == 1:
                found = self._criterion(leaf[0], target).unsqueeze(0)
            else:
                found = self._criticise_all(leaf, target)
            _, values = reduce_loss(found[0], self._units)
            losses = found if values is None else self._units.reduce(found)
            (grad,) = torch.autograd.grad(losses.sum(), leaf)
        return losses.detach(), grad

    def _criticise_all(self, scores: Tensor, target: Tensor) -> Tensor:
        """Return the result of the criterion for each run, ``(runs, ...)``."""
        try:
            return torch.vmap(self._criterion)(scores, target)
        except RuntimeError as error:
            if not is_vmap_error(error):
                raise
            raise ConfigError(
                f"the criterion cannot run for several networks at once: {str(error).splitlines()[0]}; use one that "
                "computes with tensors only, or train the networks one by one"
            ) from error


def _is_cross_entropy(criterion: Criterion) -> bool:
    """Return whether the criterion is PyTorch's cross entropy with default settings."""
    if isinstance(criterion, nn.CrossEntropyLoss) and type(criterion) is nn.CrossEntropyLoss:
        usual = (criterion.weight, criterion.ignore_index, criterion.reduction, criterion.label_smoothing)
        return usual == (None, -100, "mean", 0.0)
    return criterion is F.cross_entropy


def _cross_entropy(scores: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean cross entropy, ``(1,)``, and its gradient, by the kernels that autograd would call."""
    aten, mean, ignored = torch.ops.aten, 1, -100
    logs = torch.log_softmax(scores[0], 1)
    loss, weight = aten.nll_loss_forward.default(logs, target, None, mean, ignored)
    grad = aten.nll_loss_backward.default(torch.ones_like(loss), logs, target, None, mean, ignored, weight)
    grad = aten._log_softmax_backward_data.default(grad, logs, 1, logs.dtype)
    return loss.unsqueeze(0), grad.unsqueeze(0)
