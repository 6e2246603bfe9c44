"""The two questions to the rules of a clocked network: credit when a message is sent, observe when it is answered."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from ...core import Guard, Info, Message, Monitor, Timeline, Units
from ...core.cut import pending_gradient
from ...core.events import Kind
from ..turns import run_backward
from .mail import Sent
from .network import ClockedNetwork

__all__ = ["Exchange"]


class Exchange:
    """Asks the rules and lets them learn; knows units, guard, monitor and timeline.

    Args:
        net: whose rules.
        units: how the criteria reduce.
        monitor, guard, timeline: as the engine was given them.

    Attributes:
        step: the step at hand, set by the engine.
    """

    def __init__(
        self,
        net: ClockedNetwork,
        units: Units,
        monitor: Monitor | None,
        guard: Guard | None,
        timeline: Timeline | None,
    ) -> None:
        self.step = 0
        self._net = net
        self._units = units
        self._monitor = monitor
        self._guard = guard
        self._timeline = timeline
        # What a rule has left pending is valid as long as its parameters are those of then.
        self._versions = dict.fromkeys(net.rules, 0)

    def send(self, name: str, h: Tensor, info: Info, reads: int) -> tuple[Sent, Tensor | None]:
        """Ask for the credit of a message.

        Args:
            name: of the interface.
            h: ``(B, ...)``, attached.
            info: what is known.
            reads: how often it will be read.

        Returns:
            What receivers read, and what the sender learns from, in the criterion's units; None if nothing.
        """
        rule = self._net.rule(name)
        rule.check(h, info)
        credit = rule.credit(h, info)
        self.log("credit", name, self.step)
        if credit.loss is not None:
            credit.loss.backward()
        delta = credit.delta
        listened = rule.listens or (self._monitor is not None and delta is not None)
        sent = Sent(
            name,
            h.detach().requires_grad_(listened),
            info,
            self.step,
            missing=reads if listened else 0,
            credit=credit,
            version=self._versions[name],
        )
        return sent, None if delta is None else delta * (1.0 / self._units.divisor(h))

    def observe(self, sent: Sent) -> None:
        """Let a rule learn from the gradient of a message, which is complete."""
        name, credit, info = sent.name, sent.credit, sent.info
        rule = self._net.rule(name)
        h, grad = sent.h.detach(), sent.h.grad
        # Nothing has come back where no loss depends on the message: its true gradient is zero.
        gradient = torch.zeros_like(h) if grad is None else grad.mul_(self._units.divisor(h))
        sent.h, sent.credit, sent.missing = h, None, 0  # leaf and prediction can go
        self.check(name, gradient)
        self.log("message", name, sent.step)
        if self._monitor is not None and credit is not None:
            self._monitor.record(name, credit.delta, gradient)
        if not rule.listens:
            return
        message = Message(gradient)
        if credit is not None and credit.pending and sent.version == self._versions[name]:
            run_backward(credit.pending, pending_gradient(rule, h, info, message, credit.pending))
        else:
            loss = rule.observe(h, info, message)
            if loss is not None and loss.requires_grad:
                loss.backward()
        self.log("observe", name, sent.step)

    def learned(self, names: Iterable[str]) -> None:
        """Note that the parameters of these rules have changed."""
        for name in names:
            self._versions[name] += 1

    def check(self, where: str, value: Tensor) -> None:
        """Let the guard see a loss or a message.

        Raises:
            DivergedError: if it is not finite.
        """
        if self._guard is not None:
            self._guard.check(where, self.step, value)

    def flush(self) -> None:
        """Let the guard read what it has queued."""
        if self._guard is not None:
            self._guard.flush()

    def log(self, kind: Kind, where: str, born: int) -> None:
        """Put an event on the timeline, about what was made in step ``born``."""
        if self._timeline is not None:
            self._timeline.add(kind, where, self.step, born)
