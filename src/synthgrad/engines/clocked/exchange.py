"""How the nodes of a clocked network exchange messages, through the ports of its interfaces."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from ...core import Info, Message, Rule, Units
from ...core.in_flight import Batch, InFlight
from ...core.instruments import Instruments
from ...core.port import Port
from .network import ClockedNetwork

__all__ = ["Exchange"]


class Exchange:
    """Sends messages, lets nodes read them, and lets rules learn from their gradients.

    Args:
        net: the network with the rules.
        units: how the criteria reduce.
        instruments: the guard, monitor and timeline.
    """

    def __init__(self, net: ClockedNetwork, units: Units, instruments: Instruments) -> None:
        self._instruments = instruments
        self._ports = {name: Port(net.rule(name), units, instruments, name) for name in net.rules}
        # A pending prediction of a rule is valid until the rule's parameters change.
        self._versions = dict.fromkeys(net.rules, 0)

    def send(self, name: str, h: Tensor, info: Info, reads: int) -> tuple[InFlight, Tensor | None]:
        """Ask for the credit of a message.

        Args:
            name: the name of the interface.
            h: the message, ``(B, ...)``, attached.
            info: what is known at the interface.
            reads: how often the message will be read.

        Returns:
            The message for its readers, and the gradient that the sender learns from, in the criterion's
            units; None if there is none.
        """
        port = self._ports[name]
        flight = port.ask(h, self._batch(info), self._versions[name])
        port.feed(flight, readers=reads)
        return flight, port.learned_from(flight)

    def hand_over(self, name: str, h: Tensor, *, attached: bool) -> InFlight:
        """Return a message without credit: its edge is not cut, or it will not be read.

        Args:
            name: the name of the interface.
            h: the message, ``(B, ...)``.
            attached: whether readers get it with its graph.
        """
        # `h` is for states and late readers, which need the values; `fed` keeps the graph of an edge that is not cut.
        return InFlight(name, self._batch(Info()), h.detach(), fed=h if attached else None)

    def read(self, flight: InFlight) -> Tensor:
        """Return a message to one more reader, ``(B, ...)``."""
        flight.reads += 1
        h = flight.h if flight.fed is None else flight.fed
        port = self._ports[flight.name]
        # Most rules that wait accept the gradient unchanged, and then no hook is needed.
        if not port.rule.waits or not h.requires_grad or type(port.rule).accept is Rule.accept:
            return h
        h, units = h.view_as(h), port.units
        h.register_hook(lambda gradient: port.accepted(Message(units.to_example(gradient)), flight.info))
        return h

    def observe(self, flight: InFlight) -> None:
        """Let a rule learn from the gradient of a message, which is complete."""
        name, fed = flight.name, flight.fed
        port = self._ports[name]
        # If no loss depends on the message, it has no gradient: its true gradient is zero.
        gradient = torch.zeros_like(flight.h) if fed is None or fed.grad is None else fed.grad
        port.answer(flight, gradient)
        port.observe(flight, self._versions[name])
        flight.credit = flight.message = None  # not needed any more, while the message may be read again

    def count_updates(self, names: Iterable[str]) -> None:
        """Note that the parameters of these rules have changed."""
        for name in names:
            self._versions[name] += 1

    def _batch(self, info: Info) -> Batch:
        return Batch(info, entered=self._instruments.step)
