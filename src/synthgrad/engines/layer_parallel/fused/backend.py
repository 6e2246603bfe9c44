"""The fused backend, written out for Linear–BatchNorm–ReLU layers with linear ``M``.

No graph, and few kernels.

The time of a narrow network's step is spent on launching small kernels, so their number matters. Here it is
about forty, whatever the depth: one batched product for every product of a layer, BatchNorm by hand over all
layers, and gradients written where the optimizer reads them, or passed to Adam inside the graph, see `adam`.
Most of the remaining time is spent in six products of one layer's size:

    forward  Z = H₋₁ Wᵀ     credit  Δ = H W_Mᵀ + table[c]      prediction for the last step's H₋₁, to learn from
    message  ∂Z W           gradients  ∂Zᵀ H₋₁  and  Eᵀ H₋₁,  where E is the error of that prediction

Rows are the interfaces of all runs, ``n = layers · runs``; ``B`` examples, ``H`` units.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor

from ....core import ConfigError, ShapeError, Units
from ...base import Criterion
from ..backend import BackendOutput
from ..build import LayerGroups
from ..general import TopModules
from ..rules import InterfaceRows, StackedRules
from ..storage import GradientTable, StackedParameter, stack_buffers
from .linear_rules import ClassMeansRules, LinearRules, linear_rules
from .linear_top import LinearTopModules, linear_layer
from .patterns import Layer, dense_layer, linear_models

__all__ = ["FusedBackend", "fused_backend"]


class FusedBackend:
    """The backend for fully connected layers: the layers of all runs are rows of the same tensors.

    Biases in front of BatchNorm are left out of the computation: BatchNorm subtracts them again, so their
    gradient is zero. They only shift the running mean.

    Args:
        first: the first layer of each run.
        inner: the equal layers above, layer by layer and run by run within a layer.
        top: the last modules.
        rules: the rules of all interfaces, with a linear ``M``.
        units: the units of the criterion.
    """

    def __init__(
        self,
        first: Sequence[Layer],
        inner: Sequence[Layer],
        top: TopModules | LinearTopModules,
        rules: LinearRules | ClassMeansRules,
        units: Units,
    ) -> None:
        layers = [*first, *inner]
        self._runs = len(first)
        self._top = top
        self.rules: StackedRules = rules
        self._units = units
        # The training mode of the last one stands for that of all above the first.
        self._norms = layers[0].norm, layers[-1].norm
        self._eps = layers[0].norm.eps
        self._momentum: float = layers[0].norm.momentum or 0.0
        self._first = StackedParameter([layer.linear.weight for layer in first])  # (runs, H, D)
        self._inner = StackedParameter([layer.linear.weight for layer in inner])  # (n - runs, H, H)
        # The scale, shift and bias of each layer lie side by side, (n, 2 or 3, H), as one tensor for the optimizer.
        vectors = [[layer.norm.weight, layer.norm.bias, layer.linear.bias] for layer in layers]
        self._has_bias = inner[0].linear.bias is not None
        kept = [v for own in vectors for v in own[: 3 if self._has_bias else 2]]
        self._vectors = StackedParameter(kept, within=3 if self._has_bias else 2)
        buffers = stack_buffers([layer.norm for layer in layers])
        self._mean, self._variance = buffers["running_mean"], buffers["running_var"]
        self._count = buffers["num_batches_tracked"]
        self.buffers = list(buffers.values())
        self.rule_buffers = rules.buffers
        own = [self._first, self._inner, self._vectors]
        self.stacked = [*own, *top.stacked, *rules.stacked] if isinstance(top, LinearTopModules) else []
        self.offset = 0

    def register(self, gradients: GradientTable, depth: int, observe: int) -> None:
        runs = self._runs
        rows = [k for k in range(depth - 1) for _ in range(runs)]
        self._first.register(gradients, rows[:runs])
        self._inner.register(gradients, rows[runs:])
        self._vectors.register(gradients, [k for k in rows for _ in range(self._vectors.values.shape[1])])
        self._top.register(gradients, [depth - 1] * runs)
        self.rules.register(gradients, rows, [k + 1 + observe for k in rows])

    def check(self, x: Tensor) -> None:
        # These checks are not in `run`, because a compiled graph cannot raise them.
        if not all(norm.training for norm in self._norms):
            raise ConfigError("the network is in evaluation mode; call net.train() before the step")
        if torch.is_autocast_enabled(x.device.type):
            raise ConfigError(
                "the fused step computes in the precision of the parameters, and autocast is on; give fused=False"
            )
        if x.shape[1] < 2:
            raise ShapeError(
                f"got a batch of {x.shape[1]}, expected at least 2: BatchNorm has no variance of less"
            )

    @torch.no_grad()
    def run(
        self, x: Tensor, below: InterfaceRows, rows: InterfaceRows, target: Any, *, at_top: bool
    ) -> BackendOutput:
        runs, x = self._runs, x.flatten(2)  # (runs, B, D)
        fed, weight = below.h[:-runs], self._inner.values
        z = torch.empty_like(below.h)  # (n, B, H)
        torch.bmm(x, self._first.values.transpose(1, 2), out=z[:runs])
        torch.bmm(fed, weight.transpose(1, 2), out=z[runs:])
        deviation = self._normalise(z)
        scale, shift, *_ = self._vectors.values.unsqueeze(2).unbind(1)  # (n, 1, H) each
        h = torch.addcmul(shift, z, scale).relu_()
        credits = self.rules.credit(rows._replace(h=h))
        assert credits.delta is not None
        divisor = self._units.divisor(h[0])
        dz = self._backward(credits.delta, h, z, deviation * scale, 1.0 / divisor)
        messages = torch.zeros_like(below.h) if not at_top else torch.empty_like(below.h)
        torch.bmm(dz[runs:], weight, out=messages[:-runs])
        _product(self._inner, dz[runs:], fed, 1.0 / divisor)
        _product(self._first, dz[:runs], x, 1.0 / divisor)
        losses = None
        if at_top:
            losses, message, *_ = self._top.run(below.h[-runs:], target)
            assert message is not None
            torch.mul(message, divisor, out=messages[-runs:])
        return BackendOutput(h, credits, losses, messages, ())

    def _normalise(self, z: Tensor) -> Tensor:
        """Normalise ``z`` to mean 0 and variance 1 over each batch, in place.

        Return 1 / deviation, ``(n, 1, H)``.
        """
        size = z.shape[1]
        mean = z.sum(1, keepdim=True).div_(size)
        z.sub_(mean)
        variance = z.square().sum(1, keepdim=True).div_(size)
        mean, unbiased = mean.squeeze(1), variance.squeeze(1) * (size / (size - 1))
        self._mean.lerp_(mean.add_(self._vectors.values[:, 2]) if self._has_bias else mean, self._momentum)
        self._variance.lerp_(unbiased, self._momentum)
        self._count.add_(1)
        deviation = variance.add_(self._eps).rsqrt_()
        z.mul_(deviation)
        return deviation

    def _backward(self, delta: Tensor, h: Tensor, z: Tensor, steepness: Tensor, unit: float) -> Tensor:
        """Return the gradient of the normalised values' inputs, ``(n, B, H)``.

        Store the gradients of scale and shift.

        Args:
            delta: the credit, ``(n, B, H)``.
            h: the activations.
            z: the normalised values.
            steepness: the scales over the deviations, ``(n, 1, H)``.
            unit: the factor from per-example units to those of the criterion.
        """
        size = z.shape[1]
        dy = torch.ops.aten.threshold_backward(delta, h, 0)  # through the ReLU
        shift = dy.sum(1, keepdim=True)  # (n, 1, H)
        along = (dy * z).sum(1, keepdim=True)
        grads = self._vectors.out
        grads[:, 0] = along.squeeze(1) * unit
        grads[:, 1] = shift.squeeze(1) * unit
        # The gradient also flows through the mean and variance of the batch.
        dy.sub_(shift.div_(size)).addcmul_(z, along.div_(size), value=-1)
        return dy.mul_(steepness)


def _product(stacked_parameter: StackedParameter, dz: Tensor, fed: Tensor, scale: float) -> None:
    """Write the gradient of a weight, ``scale · dzᵀ fed``, ``(rows, H, D)``."""
    torch.baddbmm(
        stacked_parameter.grads, dz.transpose(1, 2), fed, beta=0, alpha=scale, out=stacked_parameter.out
    )


def fused_backend(
    parts: LayerGroups, criterion: Criterion, units: Units, learned: Collection[int]
) -> FusedBackend | None:
    """Return the fused backend, or None if the networks do not fit it."""
    rules = parts.rules
    layers = [[dense_layer(module) for module in modules] for modules in (parts.first, parts.inner)]
    found = [[layer for layer in some if layer is not None] for some in layers]
    if (
        [len(some) for some in found] != [len(some) for some in layers]
        or linear_models(rules) is None
        or len(parts.shape) > 1
        or units.counts_tokens  # one divisor for all examples here
    ):
        return None
    norms = {
        (layer.norm.eps, layer.norm.momentum, layer.linear.bias is None) for some in found for layer in some
    }
    if len(norms) > 1:
        return None
    linear = [layer for module in parts.last if (layer := linear_layer(module)) is not None]
    if len(linear) == len(parts.last):
        top = LinearTopModules(linear, criterion, units)
    else:
        top = TopModules(parts.last, criterion, units, learned, listened=True)
    return FusedBackend(found[0], found[1], top, linear_rules(rules), units)
