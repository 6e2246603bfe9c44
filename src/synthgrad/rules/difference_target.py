"""Difference target propagation: a module answers with a target for what it was given, in place of a gradient."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.nn.modules.dropout import _DropoutNd  # pyright: ignore[reportPrivateUsage]

from ..core import ConfigError

__all__ = ["DifferenceTarget"]


class DifferenceTarget(nn.Module):
    """A module ``f`` whose message down is the difference to a target, which an approximate inverse ``g`` finds.

    Difference target propagation (Lee, Zhang, Fischer and Bengio 2015, *Difference Target Propagation*)::

        forward     y = f(h)
        from above  e = y − t_y, the difference to its own target
        down        h − t_h = g(y) − g(y − e)
        f learns    to have y at t_y: its weights get the gradient of ½‖y − t_y‖², which is e through f alone
        g learns    to invert f near h: the gradient of ‖g(f(h + ε)) − (h + ε)‖², ε normal

    No gradient crosses ``f``. Nothing else changes: cut after such modules with any rule. `TrueGradient` waits for the targets;
    a rule that predicts its message predicts them. At the top of the highest of these modules the difference is a gradient,
    as in the paper.

    How large a difference is taken through ``g`` does not depend on the scale of ``e``, which the loss and its reduction decide:
    ``e`` is stretched to ``step`` times the size of ``y``, over the batch, and the answer is shrunk again. If ``g`` is linear, that
    changes nothing, and its message is ``e`` through the matrix of ``g``: with that of ``f``, transposed, backpropagation.

    The gradient of ``g`` is that of its own loss, whatever comes from above: a gradient scaler divides it, and updates of several
    batches add it up. An engine that runs a module backward twice for a batch has ``g`` learn twice.

    Args:
        module: ``f``: takes one tensor ``(B, ...)``, returns one. It runs a second time, without gradients, so it may hold no
            running statistics.
        inverse: ``g``: takes what ``f`` returns, returns the shape that ``f`` takes. It runs twice for one difference, so it may
            hold neither running statistics nor dropout.
        noise: standard deviation of ``ε``, as a share of that of ``h`` over the batch; 0 for none.
        step: root mean square of the stretched ``e``, as a share of that of ``y``.
        learns: whether ``g`` learns. If not, it is what it was at first: its message carries the error along random
            directions, as in feedback alignment.

    Raises:
        ConfigError: if ``module`` or ``inverse`` holds what it may not, or a number is out of its range.

    >>> f, g = nn.Linear(3, 4, bias=False), nn.Linear(4, 3, bias=False)
    >>> answering = DifferenceTarget(f, g)
    >>> h = torch.randn(8, 3, requires_grad=True)
    >>> answering(h).sum().backward()
    >>> torch.allclose(h.grad, torch.ones(8, 4) @ g.weight.T, atol=1e-6)
    True
    """

    def __init__(
        self,
        module: nn.Module,
        inverse: nn.Module,
        *,
        noise: float = 0.1,
        step: float = 0.1,
        learns: bool = True,
    ) -> None:
        super().__init__()
        if not noise >= 0:
            raise ConfigError(f"noise={noise!r}: expected a share of the standard deviation of h, 0 or more")
        if not step > 0:
            raise ConfigError(f"step={step!r}: expected a share of the size of y, over 0")
        for owner, held in (("module", module), ("inverse", inverse)):
            for name, part in held.named_modules():
                where = f"{owner}.{name}" if name else owner
                if getattr(part, "running_mean", None) is not None:
                    raise ConfigError(
                        f"{where}: a {type(part).__name__} with running statistics, which a second run would change; give it "
                        "track_running_stats=False, or take LayerNorm"
                    )
                if held is inverse and isinstance(part, _DropoutNd):
                    raise ConfigError(
                        f"{where}: a {type(part).__name__}; two runs would leave out different features, and their difference "
                        "would mean nothing; leave it out"
                    )
        self.module = module
        self.inverse = inverse
        self.noise = noise
        self.step = step
        if not learns:
            inverse.requires_grad_(False)

    def extra_repr(self) -> str:
        return f"noise={self.noise:g}, step={self.step:g}"

    def forward(self, h: Tensor) -> Tensor:
        y = self.module(h.detach())
        if not torch.is_grad_enabled():
            return y
        learned = [p for p in self.inverse.parameters() if p.requires_grad]
        found: Tensor = _Answer.apply(h, y, self, *learned)  # pyright: ignore[reportAssignmentType]
        return found

    def message(self, y: Tensor, e: Tensor) -> Tensor:
        """Return ``h − t_h`` for ``e = y − t_y``: what is sent down, in the units of ``e``."""
        largest = e.abs().max()
        unit = e / torch.where(largest > 0, largest, 1.0)  # squares of small gradients would be 0
        size = unit.square().mean().sqrt()
        wanted = self.step * y.square().mean().sqrt()
        stretch = torch.where((size > 0) & (wanted > 0), wanted / size, 1.0)
        return (self.inverse(y) - self.inverse(y - stretch * unit)) * (largest / stretch)

    def gradients(self, h: Tensor, learned: Sequence[Tensor]) -> Sequence[Tensor | None]:
        """Return the gradient of the loss of ``g`` with respect to its parameters."""
        if not learned:
            return ()
        with torch.no_grad():
            near = h + self.noise * h.std(correction=0) * torch.randn_like(h) if self.noise else h
            y = self.module(near)
        with torch.enable_grad():
            loss = F.mse_loss(self.inverse(y), near)
            return torch.autograd.grad(loss, learned, allow_unused=True)


class _Answer(torch.autograd.Function):
    """Returns ``y``; sends ``e`` on to ``f``, down what `DifferenceTarget.message` says, and to ``g`` its own gradient."""

    @staticmethod
    def forward(ctx: Any, h: Tensor, y: Tensor, owner: DifferenceTarget, *learned: Tensor) -> Tensor:
        ctx.save_for_backward(h, y, *learned)
        ctx.owner = owner
        device = h.device.type
        ctx.autocast = device, torch.get_autocast_dtype(device), torch.is_autocast_enabled(device)
        return y.view_as(y)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        (e,) = grads
        h, y, *learned = ctx.saved_tensors
        device, dtype, enabled = ctx.autocast  # what runs here runs in the precision of the forward pass
        with torch.autocast(device, dtype, enabled=enabled):
            down = ctx.owner.message(y, e).to(h.dtype) if ctx.needs_input_grad[0] else None
            return down, e, None, *ctx.owner.gradients(h, learned)
