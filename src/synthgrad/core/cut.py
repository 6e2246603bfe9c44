"""The cut of the plain training loop: one autograd function between two modules.

Forward it passes ``h`` on. Backward it receives the true gradient of ``h`` and hands the rule's credit
to the module below instead; the rule's own prediction is a second input, and receives the gradient of
the rule's loss. So one ordinary ``loss.backward()`` trains both, and optimizers, clipping, scalers,
DDP and ``torch.compile`` see nothing unusual. Nothing here calls ``.backward()`` or writes ``.grad``:
a variant that does breaks under ``torch.compile(fullgraph=True)`` and ``torch.autograd.grad``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .errors import ConfigError, CutError
from .interface import Interface
from .quality import Monitor
from .rule import Info, Message, Rule
from .units import Units

__all__ = ["CUT_NODE", "PlainCrossing", "pending_gradient"]

#: What PyTorch calls the node of a cut.
CUT_NODE = "_CutBackward"


def pending_gradient(
    rule: Rule, h: Tensor, info: Info, message: Message, pending: tuple[Tensor, ...]
) -> tuple[Tensor | None, ...]:
    """Return the gradient of ``rule.observe`` with respect to what the rule left pending.

    By the rule's own formula where it has one, else by a small graph over ``pending`` alone.
    """
    if not pending:
        with torch.no_grad():
            rule.observe(h, info, message)
        return ()
    grads = rule.observe_grad(h, info, message, pending)
    if grads is not None:
        return grads
    with torch.enable_grad():
        leaves = tuple(p.detach().requires_grad_() for p in pending)
        loss = rule.observe(h, info, message, leaves)
        if loss is None:
            return (None,) * len(pending)
        return torch.autograd.grad(loss, leaves, allow_unused=True)


class _Cut(torch.autograd.Function):
    """``cut(h, delta, loss, *pending)``: identity on ``h`` forward, the rule's credit backward.

    ``seen`` is ``h`` as the rule sees it: detached, the batch first, at least in float32 where ``h`` is in half precision.
    """

    @staticmethod
    def forward(
        ctx: Any,
        h: Tensor,
        seen: Tensor,
        interface: Interface,
        crossing: PlainCrossing,
        info: Info,
        wait: bool,
        delta: Tensor | None,
        loss: Tensor | None,
        *pending: Tensor,
    ) -> Tensor:
        ctx.interface, ctx.crossing, ctx.info = interface, crossing, info
        ctx.has_delta, ctx.has_loss = delta is not None, loss is not None
        ctx.wait = wait
        ctx.save_for_backward(seen, *([] if delta is None else [delta]), *pending)
        return h.clone() if interface.copies else h.view_as(h)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        saved = ctx.saved_tensors
        h = saved[0]  # (B, ...), as all that follows
        delta = saved[1] if ctx.has_delta else None
        pending = saved[1 + ctx.has_delta :]
        crossing: PlainCrossing = ctx.crossing
        interface: Interface = ctx.interface
        rule = interface.rule
        if torch.is_grad_enabled() and not ctx.wait and not torch.compiler.is_compiling():
            raise CutError(
                f"double backward through the cut after '{interface.name}': the gradient that comes out of it is the "
                "credit of a rule, no derivative of the loss, so a penalty on it (WGAN-GP, R1) would train nothing that "
                "it is meant to; take the penalty of the plain network (synthgrad.recouple), or use TrueGradient there"
            )
        scale = crossing.units.scale()
        divisor = crossing.units.divisor(h)
        # From the criterion's units to per-example ones. A half-precision gradient is scaled so that it fits its few
        # exponents, and would not without the scale: rules work in float32 then.
        gradient = interface.batch_first(grad).to(h.dtype) * (divisor / scale)
        if crossing.truths is not None:
            gradient = crossing.truths[interface.name]
        message = Message(gradient)
        grads: tuple[Tensor | None, ...] = (None,) * len(pending)
        if rule.listens and not _overflowed(rule, crossing.units, pending, gradient):
            grads = pending_gradient(rule, h, ctx.info, message, pending)
        learned_from = rule.accept(message, ctx.info) if ctx.wait else delta
        if crossing.monitor is not None and not torch.compiler.is_compiling():
            crossing.monitor.record(interface.name, delta, gradient)
        return (
            None
            if learned_from is None
            else interface.as_made((learned_from * (scale / divisor)).to(grad.dtype)),
            None,
            None,
            None,
            None,
            None,
            None,
            torch.as_tensor(scale, device=h.device, dtype=h.dtype) if ctx.has_loss else None,
            *(None if g is None else g * scale for g in grads),
        )


def _overflowed(rule: Rule, units: Units, pending: tuple[Tensor, ...], gradient: Tensor) -> bool:
    """Is this a step that a gradient scaler will leave out, and a rule that would remember it all the same?"""
    if units.loss_scale is None or pending or torch.compiler.is_compiling():
        return False  # what is learned by gradient is left out with everything else
    return not bool(gradient.isfinite().all())


class PlainCrossing:
    """Puts the cut of the plain training loop at every interface.

    Args:
        units: how the criterion reduced and scaled its losses.
        monitor: measures the quality of every credit when the true gradient passes; or None.
        truths: messages in place of what comes back, by interface; or None.
    """

    def __init__(
        self, units: Units, monitor: Monitor | None = None, truths: Mapping[str, Tensor] | None = None
    ) -> None:
        self.units = units
        self.monitor = monitor
        self.truths = truths

    def __call__(self, interface: Interface, h: Tensor) -> Tensor:
        if interface.input_rule is not None:
            raise ConfigError(
                f"interface '{interface.name}' has synthetic inputs, which unlock the forward pass: the plain "
                "training loop runs it in order; use synthgrad.engines.InProcess, or decouple without inputs"
            )
        seen = interface.batch_first(h)
        if h.dtype == torch.float16:
            with torch.autocast(h.device.type, enabled=False):
                return self._cut(interface, h, seen.float())
        return self._cut(interface, h, seen)

    def _cut(self, interface: Interface, h: Tensor, seen: Tensor) -> Tensor:
        """Ask the rule, and put the cut in.

        Args:
            interface: the interface.
            h: the message as the network has made it.
            seen: the same as the rule sees it, ``(B, ...)``.
        """
        info, rule = interface.frame.info, interface.rule
        rule.check(seen, info)
        credit = rule.credit(seen, info)
        return _Cut.apply(
            h, seen.detach(), interface, self, info, credit.wait, credit.delta, credit.loss, *credit.pending
        )
