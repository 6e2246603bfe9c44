"""The port: how every engine talks to the rule at an interface. Ask, answer, observe, release.

::

    module below ──h──►  1. ask      the rule gives its credit      ─► the module below learns at once …
                         2. feed     the modules above get a leaf
    modules above ──δ─►  3. answer   the leaf's gradient, in per-example units: guard, timeline
                         4. observe  the rule learns from it: monitor, timeline
                         5. release  … or now, where its credit said that it shall wait

Between 2 and 4 an `InFlight` keeps what is needed. Engines decide when each of these happens, and step the optimizers;
everything else about them stands here, once. `InputPort` is the mirror image, for rules that stand in for activations.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch.autograd import backward

from .errors import ConfigError
from .in_flight import Batch, InFlight
from .input_rule import InputRule, Supply
from .instruments import Instruments
from .quality import is_finite
from .rule import Credit, Info, Message, Rule
from .units import Units

__all__ = ["InputPort", "Port", "Wire", "refuse_network_reader", "refuse_second_messages", "run_backward"]


class Wire(Protocol):
    """What becomes of activations and messages on their way between two modules, where that is not nothing."""

    def up(self, h: Tensor) -> Tensor:
        """Return an activation ``(B, ...)`` as the module above receives it."""
        ...

    def down(self, message: Tensor) -> Tensor:
        """Return a message ``(B, ...)`` as the module below receives it."""
        ...


class Port:
    """The rule at one interface, and what looks on.

    Args:
        rule: at the interface; bound, so it knows its name.
        units: how the criterion reduces; of the batch at hand, or, where batches are in flight, of any: see `units_of`.
        instruments: of the engine; none if nothing looks on.
        name: of the interface, where the rule serves another one than that for which it was bound.
        wire: that activations and messages cross; None for none.
    """

    def __init__(
        self,
        rule: Rule,
        units: Units,
        instruments: Instruments | None = None,
        name: str | None = None,
        wire: Wire | None = None,
    ) -> None:
        self.wire = wire
        self.rule = rule
        self.units = units
        self.instruments = Instruments() if instruments is None else instruments
        self.name = rule.name if name is None else name

    def units_of(self, batch: Batch) -> Units:
        """Return the units of a batch: with the shares of its examples in the criterion, where tokens are counted."""
        return self.units.with_shares(batch.shares)

    # -- 1. ask ---------------------------------------------------------------------------------------

    def credit(self, h: Tensor, info: Info, entered: int | None = 0) -> Credit:
        """Ask the rule. Its own loss, if it has one, is left to the caller.

        Args:
            h: ``(B, ...)``, the batch first.
            info: what is known.
            entered: the step in which the batch entered, for the timeline; None where the module below has been given
                credit for it before, and the rule is asked for its prediction again.

        Raises:
            ConfigError: if ``h`` is in float16, in which no unlocked gradient fits.
            ShapeError: if ``h`` has other rows than the batch has examples.
            ContextError: if the rule lacks what it needs to know.
        """
        if h.dtype == torch.float16:
            raise ConfigError(
                f"interface '{self.name}': got a message in float16, in which gradients need a scaled loss, and an "
                "unlocked module has no loss to scale; use bfloat16, or the plain loop with a gradient scaler"
            )
        self.units.check_rows(h, self.name)
        self.rule.check(h, info)
        credit = self.rule.credit(h, info)
        if entered is not None:
            self.instruments.log("credit", self.name, entered)
        return credit

    def ask(self, h: Tensor, batch: Batch, version: int) -> InFlight:
        """Ask the rule as a message crosses, and let it learn from its own loss, if it has one.

        Args:
            h: ``(B, ...)``, the batch first; attached where the rule's loss is to reach the module below.
            batch: that it is of.
            version: of the rule's parameters.

        Returns:
            What is to be kept until the answer has come; not ``finite``, if activation or credit are not, and the guard
            goes on all the same: nothing may be learned from it.

        Raises:
            DivergedError: if activation or credit are not finite.
        """
        self.units_of(batch).check_rows(h, self.name)
        credit = self.credit(h, batch.info, batch.entered)
        flight = InFlight(self.name, batch, h.detach(), credit, version)
        flight.finite = self.instruments.check_crossing(self.name, flight.h, credit.delta)
        if credit.loss is not None and flight.finite:
            credit.loss.backward()
        return flight

    def learned_from(self, flight: InFlight) -> Tensor | None:
        """Return what the module below learns from now, ``(B, ...)`` in the criterion's units; None for nothing."""
        credit = flight.credit
        if credit is None or credit.delta is None or credit.wait or not flight.finite:
            return None
        return self.units_of(flight.batch).to_criterion(credit.delta)

    # -- 2. feed --------------------------------------------------------------------------------------

    def wants_answer(self, flight: InFlight) -> bool:
        """Does anybody look at what will come back: the rule, a module that waits, or the monitor?"""
        credit = flight.credit
        final = credit is not None and credit.final
        if flight.waits or (self.rule.listens and not final):
            return True
        return self.instruments.monitor is not None and credit is not None and credit.delta is not None

    def feed(self, flight: InFlight, *, readers: int = 1, learns: bool = True) -> Tensor:
        """Return what the modules above are fed with, ``(B, ...)``: a leaf, whose gradient will be the answer.

        Args:
            flight: what crosses.
            readers: modules that will add their part to the gradient.
            learns: False where they run forward only.
        """
        wanted = learns and self.wants_answer(flight)
        came = flight.h if self.wire is None else self.wire.up(flight.h)
        flight.fed = came.detach().requires_grad_(wanted)
        flight.missing = readers if wanted else 0
        return flight.fed

    # -- 3. answer ------------------------------------------------------------------------------------

    def answer(
        self,
        flight: InFlight,
        gradient: Tensor,
        loss: Tensor | None = None,
        output_error: Tensor | None = None,
    ) -> None:
        """Take what has come back, by way of the same process.

        Args:
            flight: what it belongs to; it lets go of its leaf.
            gradient: of what was fed, ``(B, ...)`` in the criterion's units; changed in place.
            loss: ``(B,)``, of each example, where it is known.
            output_error: ``(B, ...)``, per-example units, where a rule needs it.

        Raises:
            DivergedError: if it is not finite.
        """
        flight.fed, flight.missing = None, 0
        made = self.units_of(flight.batch).to_example_(gradient)
        self.receive(flight, Message(made if self.wire is None else self.wire.down(made), loss, output_error))

    def receive(self, flight: InFlight, message: Message) -> None:
        """Take the answer, in per-example units already. What is not finite is never learned from.

        Raises:
            DivergedError: if it is not finite, and a guard is to stop.
            ConfigError: if the rule needs the output error, and it has not come with the message.
        """
        flight.message = message
        if self.rule.needs_output_error:
            message.output_error = self.output_error(message, flight.h)
        if self.instruments.guard is not None:
            flight.finite &= self.instruments.check(self.name, message.gradient)
        elif message.gradient.is_cpu:
            flight.finite &= is_finite(
                message.gradient
            )  # whoever wants no guard, wants no poisoned rules either
        self.instruments.log("message", self.name, flight.batch.entered)

    def output_error(self, message: Message, h: Tensor) -> Tensor:
        """Return the output error that a message brings, in the dtype of ``h``.

        Raises:
            ConfigError: if it brings none.
        """
        if message.output_error is None:
            raise ConfigError(
                f"interface '{self.name}': its rule needs the network's output error, and the module above has learned "
                "before that was known; take a rule that waits at every interface above, or the plain loop"
            )
        return message.output_error.to(h.dtype)

    # -- 4. observe -----------------------------------------------------------------------------------

    def observe(self, flight: InFlight, version: int, share: int = 1) -> None:
        """Let the rule learn from the answer: leaves gradients in its parameters.

        Args:
            flight: with its answer.
            version: of the rule's parameters now. Equal to that of the flight, what the rule has left pending is used.
            share: answers that are learned from together, as one sample: each counts for one part.
        """
        message, credit = flight.message, flight.credit
        assert message is not None
        if not flight.finite:
            return
        if credit is not None:
            self.measure(credit.delta, message.gradient, flight.batch)
        if not self.rule.listens or (credit is not None and credit.final):
            return
        if credit is not None and credit.pending and flight.version == version:
            grads = self.pending_gradient(flight.h, flight.info, message, credit.pending)
            if share > 1:
                grads = tuple(None if g is None else g / share for g in grads)
            run_backward(credit.pending, grads)
        else:
            with torch.enable_grad():  # the module below may be one that only passes activations on
                loss = self.rule.observe(flight.h, flight.info, message)
            if loss is not None and loss.requires_grad:
                (loss / share if share > 1 else loss).backward()
        self.instruments.log("observe", self.name, flight.batch.entered)

    def measure(self, delta: Tensor | None, gradient: Tensor, batch: Batch | None = None) -> None:
        """Let the monitor compare a credit with the message that has come for it, both in per-example units.

        Examples without any label are left out, because nobody learns from credit for them.

        Args:
            delta: the credit.
            gradient: of the message.
            batch: that they are of; None for the one of which the units are.
        """
        if self.instruments.monitor is None:
            return
        units = self.units if batch is None else self.units_of(batch)
        self.instruments.measure(self.name, None if delta is None else units.counted(delta), gradient)

    def pending_gradient(
        self, h: Tensor, info: Info, message: Message, pending: tuple[Tensor, ...]
    ) -> tuple[Tensor | None, ...]:
        """Return the gradient of the rule's loss with respect to what it left pending.

        By the rule's own formula where it has one, else by a small graph over ``pending`` alone.
        """
        rule = self.rule
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

    # -- 5. release -----------------------------------------------------------------------------------

    def release(self, flight: InFlight) -> None:
        """Hand the answer to the module below, if that has waited for it."""
        if flight.release is None:
            return
        assert flight.message is not None
        release, flight.release = flight.release, None
        gradient = self.accepted(flight.message, flight.info, flight.batch) if flight.finite else None
        release(gradient, flight.message)

    def accepted(self, message: Message, info: Info, batch: Batch | None = None) -> Tensor:
        """Return what a module that has waited learns from, ``(B, ...)`` in the criterion's units.

        Args:
            message: what came back.
            info: what was known when ``h`` crossed.
            batch: that it is of; None for the one of which the units are.
        """
        units = self.units if batch is None else self.units_of(batch)
        return units.to_criterion(self.rule.accept(message, info))


class InputPort:
    """The input rule at one interface, and what looks on.

    Args:
        rule: at the interface; bound, so it knows its name.
        instruments: of the engine; none if nothing looks on.
    """

    def __init__(self, rule: InputRule, instruments: Instruments | None = None) -> None:
        self.rule = rule
        self.instruments = Instruments() if instruments is None else instruments
        self.name = rule.name

    def supply(self, batch: Batch) -> Supply:
        """Return what stands in for the activation of a batch.

        Raises:
            ContextError: if the rule lacks what it needs to know.
        """
        info = batch.info
        self.rule.check(info.inputs, info)
        assert info.inputs is not None
        supply = self.rule.supply(info.inputs, info)
        self.instruments.log("supply", self.name, batch.entered)
        return supply

    def observe(self, batch: Batch, h: Tensor, pending: tuple[Tensor, ...] = ()) -> bool:
        """Let the rule learn from an activation, ``(B, ...)``, detached; return whether there was anything to learn.

        Args:
            batch: that it is of.
            h: the activation.
            pending: what `supply` has left for this very batch, if the rule's parameters are still the same.
        """
        info = batch.info
        assert info.inputs is not None
        if h.is_cpu and not is_finite(h):
            return False  # never learned from; the guard looks at it where it crosses
        loss = self.rule.observe(info.inputs, info, h, pending)
        if loss is None or not loss.requires_grad:
            return False
        loss.backward()
        return True


def refuse_second_messages(rule: Rule, name: str) -> None:
    """Refuse a rule for which a module would have to run backward more than once.

    Args:
        rule: the rule.
        name: of the interface.

    Raises:
        ConfigError: if it sends ahead, or corrects its credit; naming the interface.
    """
    if rule.sends_ahead or rule.corrects:
        does = (
            "corrects its credit when the message has come"
            if rule.corrects
            else "sends its message before the module below has learned"
        )
        raise ConfigError(
            f"interface '{name}': its rule {type(rule).__name__} {does}, and here a module runs backward once for a batch; "
            "use synthgrad.engines.InProcess"
        )


def refuse_network_reader(rule: Rule, name: str) -> None:
    """Refuse a rule that reads weights of the network, which an engine does not have as they are now.

    Args:
        rule: the rule.
        name: of the interface.

    Raises:
        ConfigError: if it does; naming the interface.
    """
    if rule.needs_network:
        raise ConfigError(
            f"interface '{name}': its rule {type(rule).__name__} reads weights of the network (unembedding=...), which are not "
            "those that train here; leave that out, so that its head has weights of its own, or use synthgrad.engines.InProcess"
        )


def run_backward(
    roots: Sequence[Tensor], grads: Sequence[Tensor | None], *, retain_graph: bool = False
) -> bool:
    """Run backward from the roots that have a gradient and a graph; return whether there were any."""
    pairs = [(r, g) for r, g in zip(roots, grads, strict=True) if g is not None and r.requires_grad]
    if pairs:
        backward([r for r, _ in pairs], [g for _, g in pairs], retain_graph=retain_graph)
    return bool(pairs)
