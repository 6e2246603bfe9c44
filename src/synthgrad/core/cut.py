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
from .graph import Graph
from .instruments import Instruments
from .interface import Interface
from .outputs import output_of
from .port import Port, refuse_second_messages
from .quality import is_finite
from .rule import Info, Message
from .units import Units

__all__ = ["CUT_NODE", "PlainCrossing"]

#: What PyTorch calls the node of a cut.
CUT_NODE = "_CutBackward"


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
        if torch.is_grad_enabled() and not ctx.wait and not torch.compiler.is_compiling():
            raise CutError(
                f"double backward through the cut after '{interface.name}': the gradient that comes out of it is the "
                "credit of a rule, no derivative of the loss, so a penalty on it (WGAN-GP, R1) would train nothing that "
                "it is meant to; take the penalty of the plain network (synthgrad.recouple), or use TrueGradient there"
            )
        port = crossing.port(interface)
        units = port.units
        # From the criterion's units to per-example ones. A half-precision gradient is scaled so that it fits its few
        # exponents, and would not without the scale: rules work in float32 then.
        gradient = units.to_example(interface.batch_first(grad).to(h.dtype))
        if crossing.truths is not None:
            gradient = crossing.truths[interface.name]
        message = Message(gradient)
        if port.rule.needs_output_error:
            message.output_error = port.output_error(
                Message(gradient, None, crossing.output_error(units, h)), h
            )
        grads: tuple[Tensor | None, ...] = (None,) * len(pending)
        learns = port.rule.listens and _is_fit(units, gradient)
        if learns:
            grads = port.pending_gradient(h, ctx.info, message, pending)
        if not torch.compiler.is_compiling():
            crossing.answered(port, delta, gradient, learns=learns)
        learned_from = port.accepted(message, ctx.info) if ctx.wait else delta
        if learned_from is not None and not ctx.wait:
            learned_from = units.to_criterion(learned_from)
        scale = units.scale()
        return (
            None if learned_from is None else interface.as_made(learned_from.to(grad.dtype)),
            None,
            None,
            None,
            None,
            None,
            None,
            torch.as_tensor(scale, device=h.device, dtype=h.dtype) if ctx.has_loss else None,
            *(None if g is None else g * scale for g in grads),
        )


def _is_fit(units: Units, gradient: Tensor) -> bool:
    """May a rule learn from a message? Not from one that has overflowed: a gradient scaler leaves such a step out.

    On an accelerator it is asked where losses are scaled, so that overflows are to be expected; else no step waits.
    """
    if torch.compiler.is_compiling() or (not gradient.is_cpu and units.loss_scale is None):
        return True
    return is_finite(gradient)


class PlainCrossing:
    """Puts the cut of the plain training loop at every interface.

    Args:
        units: how the criterion reduced and scaled its losses.
        instruments: look on; None for nothing.
        truths: messages in place of what comes back, by interface; or None.
        graph: of the network, whose modules the timeline names; None where there is none.
        entered: the step in which the batch entered, for the timeline; None for the step at hand.
        again: has the module below been given credit before, so that the rule is asked for its prediction only?
    """

    def __init__(
        self,
        units: Units,
        instruments: Instruments | None = None,
        truths: Mapping[str, Tensor] | None = None,
        graph: Graph | None = None,
        entered: int | None = None,
        *,
        again: bool = False,
    ) -> None:
        self.units = units
        self.instruments = Instruments() if instruments is None else instruments
        self.truths = truths
        self._graph = graph
        self._entered = self.instruments.step if entered is None else entered
        self._again = again
        self._ends: set[str] = set()
        self._learned: set[str] = set()
        self._output_gradient: Tensor | None = None

    def port(self, interface: Interface) -> Port:
        """Return how to talk to the rule at an interface."""
        return Port(interface.rule, self.units, self.instruments, interface.name)

    def __call__(self, interface: Interface, h: Tensor) -> Tensor:
        if interface.input_rule is not None:
            raise ConfigError(
                f"interface '{interface.name}' has synthetic inputs, which unlock the forward pass: the plain "
                "training loop runs it in order; use synthgrad.engines.InProcess, or decouple without inputs"
            )
        refuse_second_messages(interface.rule, interface.name)
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
        info = interface.frame.info
        if not torch.compiler.is_compiling():
            self.reached(interface.name)
        credit = self.port(interface).credit(seen, info, None if self._again else self._entered)
        loss = None if self._again else credit.loss  # it has been learned from when credit was given
        return _Cut.apply(
            h, seen.detach(), interface, self, info, credit.wait, credit.delta, loss, *credit.pending
        )

    # -- the output error ------------------------------------------------------------------------------

    def watch_output(self, output: Any) -> None:
        """Take note of the gradient of the network's output, once it is known: before that of any message below."""

        def keep(gradient: Tensor) -> None:
            self._output_gradient = gradient

        found = output_of(output)
        if found.requires_grad:
            found.register_hook(keep)

    def output_error(self, units: Units, h: Tensor) -> Tensor | None:
        """Return the gradient of the output in per-example units, ``(B, ...)``; None where there is none.

        Args:
            units: of the criterion.
            h: a message of the same batch, ``(B, ...)``.
        """
        gradient = self._output_gradient
        return None if gradient is None else units.to_example(gradient.detach().to(h.dtype), like=h)

    # -- what looks on --------------------------------------------------------------------------------

    def reached(self, end: str) -> None:
        """Note that the forward pass has reached an end of a module: an interface, or the output."""
        if self.instruments.timeline is None or self._graph is None:
            return
        self._ends.add(end)
        for module in self._graph.modules:
            if end in module.ends and self._ends.issuperset(module.ends):
                self.instruments.log("forward", module.name, self._entered)

    def answered(self, port: Port, delta: Tensor | None, gradient: Tensor, *, learns: bool) -> None:
        """Note that a message has come: the modules above have run backward, and the rule has learned from it."""
        log, entered = self.instruments.log, self._entered
        if self.instruments.timeline is not None and self._graph is not None:
            for k in self._graph.consumers(port.name):
                name = self._graph.modules[k].name
                if name not in self._learned:
                    self._learned.add(name)
                    log("backward", name, entered)
        log("message", port.name, entered)
        if learns:
            log("observe", port.name, entered)
        port.measure(delta, gradient)
