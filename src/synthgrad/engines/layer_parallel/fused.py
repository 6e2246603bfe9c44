"""All layers in one step, written out for Linear–BatchNorm–ReLU layers with linear ``M``: no graph, few kernels.

A narrow network's step is made of dispatching small kernels, so what counts is how many there are. Here they are
about forty, whatever the depth: one batched product for every product of a layer, BatchNorm by hand over all layers,
and gradients written where the optimizer reads them. Products take the most of what is left, six of one layer's size:

    forward  Z = H₋₁ Wᵀ     credit  Δ = H W_Mᵀ + table[c]      prediction for the last step's H₋₁, to learn from
    message  ∂Z W           gradients  ∂Zᵀ H₋₁  and  Eᵀ H₋₁,  E the error of that prediction

Rows are the interfaces of all runs, ``n = layers · runs``; ``B`` examples, ``H`` units.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ...core import ConfigError, Rule, ShapeError, Units
from .build import Parts
from .fits import Layer, dense_layer, linear_models
from .general import Ran, Top
from .labels import check_contexts
from .rules import Credits, Rows
from .storage import Ledger, bind, bind_buffers

__all__ = ["Fused", "fused_body"]


class LinearModels:
    """Linear ``M`` at all interfaces: ``δ̂ = h Wᵀ + table[c]``, or ``+ b`` without a context."""

    listens = True
    in_turn = False

    def __init__(self, rules: Sequence[Rule]) -> None:
        models = linear_models(rules)
        assert models is not None
        self._width = models[0].width
        self._rule = rules[0]
        self._parameters = [[m.first.weight for m in models]]
        self._parameters += [[m.first.bias if m.table is None else m.table for m in models]]
        self._weight, self._offset = (
            bind(p) for p in self._parameters
        )  # (n, H, H); (n, classes, H) or (n, H)
        self._grads = [torch.zeros_like(self._weight), torch.zeros_like(self._offset)]
        self._starts = self._width * torch.arange(len(models), device=self._weight.device).unsqueeze(1)
        self._indices: list[tuple[Tensor, Tensor]] = []
        self.buffers: list[Tensor] = []

    def note(self, ledger: Ledger, credited: Sequence[int], observed: Sequence[int]) -> None:
        for parameters, grads in zip(self._parameters, self._grads, strict=True):
            ledger.note(parameters, grads, observed)

    def check(self, h: Tensor, contexts: Tensor | None) -> None:
        check_contexts(self._rule, self._width, h, contexts)

    def credit(self, rows: Rows) -> Credits:
        return Credits(self._predict(rows.h, rows.contexts))

    def observe(self, rows: Rows, messages: Tensor, values: Sequence[Tensor | None]) -> None:
        h, c = rows.h, rows.contexts
        error = self._predict(h, c).sub_(messages).mul_(2.0 / max(h.shape[1], 1))  # (n, B, H)
        torch.bmm(error.transpose(1, 2), h, out=self._grads[0])
        self._keep_offset(error, c)

    def _predict(self, h: Tensor, c: Tensor | None) -> Tensor:
        if not self._width:
            return torch.baddbmm(self._offset.unsqueeze(1), h, self._weight.transpose(1, 2))
        assert c is not None
        if c.is_floating_point():
            offset = torch.bmm(c.to(h.dtype), self._offset)
        else:
            offset = self._offset.flatten(0, 1).index_select(0, self._index(c)).view(h.shape)
        return torch.baddbmm(offset, h, self._weight.transpose(1, 2))

    def _keep_offset(self, error: Tensor, c: Tensor | None) -> None:
        grads = self._grads[1]
        if not self._width:
            torch.sum(error, 1, out=grads)
            return
        assert c is not None
        if c.is_floating_point():
            torch.bmm(c.to(error.dtype).transpose(1, 2), error, out=grads)
            return
        grads.zero_()
        grads.view(-1, grads.shape[-1]).index_add_(0, self._index(c), error.flatten(0, 1))

    def _index(self, c: Tensor) -> Tensor:
        """Return the rows of all tables, one below the other, that class indices ``(n, B)`` mean."""
        for known, index in self._indices:
            if known is c:  # they come again when the messages have
                return index
        index = (c + self._starts).flatten()
        self._indices = [*self._indices[-1:], (c, index)]
        return index


class _Bound:
    """Parameters of one shape as one tensor, and their gradients."""

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        self.parameters = parameters
        self.values = bind(parameters)  # (rows, ...)
        self.grads = torch.zeros_like(self.values)


class Fused:
    """Fully connected layers: the first of each run, and the equal ones above it, as rows of the same tensors.

    Biases in front of BatchNorm are left out of the arithmetic: what they add is subtracted again, so their
    gradient is zero; they only shift the running mean.

    Args:
        first: the first layer of each run.
        inner: the equal ones, layer by layer and run by run within a layer.
        top: the last modules.
        rules: linear ``M`` of all interfaces.
        units: of the criterion.
    """

    def __init__(
        self, first: Sequence[Layer], inner: Sequence[Layer], top: Top, rules: LinearModels, units: Units
    ) -> None:
        layers = [*first, *inner]
        self._runs = len(first)
        self._top = top
        self.rules = rules
        self._units = units
        self._norm = layers[0].norm
        self._momentum: float = layers[0].norm.momentum or 0.0
        self._first = _Bound([layer.linear.weight for layer in first])  # (runs, H, D)
        self._inner = _Bound([layer.linear.weight for layer in inner])  # (n - runs, H, H)
        self._scale = _Bound([layer.norm.weight for layer in layers])  # (n, H)
        self._shift = _Bound([layer.norm.bias for layer in layers])
        self._bias = None
        if inner[0].linear.bias is not None:
            self._bias = _Bound([layer.linear.bias for layer in layers])
        buffers = bind_buffers([layer.norm for layer in layers])
        self._mean, self._variance = buffers["running_mean"], buffers["running_var"]
        self._count = buffers["num_batches_tracked"]
        #: Rows that no batch has reached are put back by the engine.
        self.buffers = list(buffers.values())
        self.rule_buffers = rules.buffers
        #: The row of `buffers` that belongs to the lowest interface.
        self.offset = 0

    def note(self, ledger: Ledger, depth: int, observe: int) -> None:
        """Say where the gradients of all parameters will be, and from which step on."""
        runs = self._runs
        rows = [k for k in range(depth - 1) for _ in range(runs)]
        ledger.note(self._first.parameters, self._first.grads, rows[:runs])
        ledger.note(self._inner.parameters, self._inner.grads, rows[runs:])
        for bound in (self._scale, self._shift, self._bias):
            if bound is not None:
                ledger.note(bound.parameters, bound.grads, rows)
        self._top.stack.note(ledger, [depth - 1] * runs)
        self.rules.note(ledger, rows, [k + 1 + observe for k in rows])

    @torch.no_grad()
    def run(self, x: Tensor, below: Tensor, rows: Rows, target: Any, *, at_top: bool) -> Ran:
        """Run forward and backward of every layer, each on its batch; see `General.run`."""
        runs, x = self._runs, x.flatten(2)  # (runs, B, D)
        self._check(x)
        fed, weight = below[:-runs], self._inner.values
        z = below.new_empty(below.shape)  # (n, B, H)
        torch.bmm(x, self._first.values.transpose(1, 2), out=z[:runs])
        torch.bmm(fed, weight.transpose(1, 2), out=z[runs:])
        deviation = self._normalise(z)
        h = torch.addcmul(self._shift.values.unsqueeze(1), z, self._scale.values.unsqueeze(1)).relu_()
        credits = self.rules.credit(rows._replace(h=h))
        assert credits.delta is not None
        divisor = self._units.divisor(h[0])
        dz = self._backward(credits.delta, h, z, deviation, 1.0 / divisor)
        messages = torch.zeros_like(below) if not at_top else torch.empty_like(below)
        torch.bmm(dz[runs:], weight, out=messages[:-runs])
        _product(self._inner.grads, dz[runs:], fed, 1.0 / divisor)
        _product(self._first.grads, dz[:runs], x, 1.0 / divisor)
        losses = None
        if at_top:
            with torch.enable_grad():
                losses, message, _ = self._top.run(below[-runs:], target)
            assert message is not None
            torch.mul(message, divisor, out=messages[-runs:])
        return Ran(h, credits, losses, messages, ())

    def _normalise(self, z: Tensor) -> Tensor:
        """Bring ``z`` to mean 0 and variance 1 over each batch, in place; return ``(n, 1, H)``, 1 / deviation."""
        size = z.shape[1]
        mean = z.sum(1, keepdim=True).div_(size)
        z.sub_(mean)
        variance = z.square().sum(1, keepdim=True).div_(size)
        mean, unbiased = mean.squeeze(1), variance.squeeze(1) * (size / (size - 1))
        self._mean.lerp_(mean if self._bias is None else mean.add_(self._bias.values), self._momentum)
        self._variance.lerp_(unbiased, self._momentum)
        self._count += 1
        deviation = variance.add_(self._norm.eps).rsqrt_()
        z.mul_(deviation)
        return deviation

    def _backward(self, delta: Tensor, h: Tensor, z: Tensor, deviation: Tensor, scale: float) -> Tensor:
        """Return the gradient of what was normalised, ``(n, B, H)``, per-example units; keep those of scale and shift.

        Args:
            delta: ``(n, B, H)``, the credit.
            h: what has crossed.
            z: normalised.
            deviation: 1 / deviation.
            scale: from per-example units to those of the criterion.
        """
        size = z.shape[1]
        dy = torch.ops.aten.threshold_backward(delta, h, 0)  # through the ReLU
        shift = dy.sum(1, keepdim=True)  # (n, 1, H)
        along = (dy * z).sum(1, keepdim=True)
        torch.mul(shift.squeeze(1), scale, out=self._shift.grads)
        torch.mul(along.squeeze(1), scale, out=self._scale.grads)
        # A batch's mean and variance take their part of the gradient with them.
        dy.sub_(shift.div_(size)).addcmul_(z, along.div_(size), value=-1)
        return dy.mul_(deviation * self._scale.values.unsqueeze(1))

    def _check(self, x: Tensor) -> None:
        if not self._norm.training:
            raise ConfigError("the network is in evaluation mode; call net.train() before the step")
        if x.shape[1] < 2:
            raise ShapeError(
                f"got a batch of {x.shape[1]}, expected at least 2: BatchNorm has no variance of less"
            )


def _product(grads: Tensor, dz: Tensor, fed: Tensor, scale: float) -> None:
    """Write ``scale · dzᵀ fed``, the gradient of a weight, ``(rows, H, D)``."""
    torch.baddbmm(grads, dz.transpose(1, 2), fed, beta=0, alpha=scale, out=grads)


def fused_body(parts: Parts, top: Top, units: Units) -> Fused | None:
    """Return the fused step, or None if the networks are not of its kind."""
    rules = parts.rules
    layers = [[dense_layer(module) for module in modules] for modules in (parts.first, parts.inner)]
    found = [[layer for layer in some if layer is not None] for some in layers]
    if (
        [len(some) for some in found] != [len(some) for some in layers]
        or linear_models(rules) is None
        or len(parts.shape) > 1
    ):
        return None
    norms = {
        (layer.norm.eps, layer.norm.momentum, layer.linear.bias is None) for some in found for layer in some
    }
    return Fused(found[0], found[1], top, LinearModels(rules), units) if len(norms) == 1 else None
