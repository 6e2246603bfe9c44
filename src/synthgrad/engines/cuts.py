"""What happens at the cuts of the in-process engine in a step: modules learn as soon as their own forward is done.

::

    forward of module k ──► interface k: credit δ̂ₖ = Mₖ(hₖ, c)
                                │ 1. backward of module k from δ̂ₖ; its graph is freed
                                │ 2. that backward has produced δₖ₋₁, the message for interface k−1:
                                │    Mₖ₋₁ observes it
                                │ 3. one optimizer step: module k, and the Mₖ₋₁ that speaks for it
                                ▼
    forward of module k+1 on a detached hₖ …; at the output the true gradient takes the place of δ̂

The user's own forward runs unchanged: the three steps happen inside the forward hooks at the cuts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from ..core import Decoupled, Guard, Info, InputRule, Message, Monitor, Timeline
from ..core.cut import pending_gradient
from ..core.graph import OUTPUT
from ..core.interface import Interface
from ..core.outputs import tensors_in
from .base import Criterion, StepRecord, reduced
from .checks import refuse_half
from .lags import Batch, Crossed
from .mail import Mail
from .optimizers import step_all
from .penalty import Penalties
from .turns import Turn, run_backward
from .watch import Watch, reused

__all__ = ["Cuts", "NothingAbove"]


class NothingAbove(BaseException):
    """Ends a forward pass at an interface whose lag has not filled yet. Never leaves the engine."""


class Cuts:
    """The modules' turns of one step after another.

    Args:
        net: the network.
        criterion: the user's.
        optimizers: of each module.
        mail: what is under way at the interfaces.
        penalties: of the modules.
        guard: stops at numbers that are not finite; None not to.
        sparse: do some modules only pass activations on?

    Attributes:
        monitor: measures the quality of credits; None to measure nothing.
        timeline: is filled with what happens; None to keep nothing.
    """

    def __init__(
        self,
        net: Decoupled,
        criterion: Criterion,
        optimizers: Sequence[Sequence[Optimizer]],
        mail: Mail,
        penalties: Penalties,
        guard: Guard | None,
        *,
        sparse: bool,
    ) -> None:
        graph = net.graph
        self.net = net
        self.criterion = criterion
        self.monitor: Monitor | None = None
        self.timeline: Timeline | None = None
        self._modules = graph.modules
        self._names = [m.name for m in graph.modules]
        self._ends_at = {end: k for k, m in enumerate(graph.modules) for end in m.ends}
        self._consumers = {name: graph.consumers(name) for name in graph.sites}
        self._is_chain = graph.is_chain
        self._optimizers = optimizers
        self._mail = mail
        self._penalties = penalties
        self._watch = Watch(net, [o for own in optimizers for o in own])
        self._seen_criterion = False
        self._guard = guard
        self._sparse = sparse
        # The step at hand:
        self._step = 0
        self._turns: list[Turn] = []
        self._batch = Batch(Info(), None, 0)
        self._record = StepRecord(0)

    def begin(self, batch: Batch, record: StepRecord, updates: Sequence[bool]) -> None:
        """Begin a step.

        Args:
            batch: that the lowest module works on.
            record: to be filled; knows the number of the step.
            updates: the modules that have drawn an update.
        """
        self._watch.forget()
        self._step, self._batch, self._record = record.step, batch, record
        self._turns = [Turn(k, updates=draw) for k, draw in enumerate(updates)]
        self._grad_mode(0)

    def end(self) -> None:
        """End a step: let go of every tensor."""
        self._turns = []

    def check(self) -> None:
        """Refuse gradients that nobody has used, at the end of a step.

        Raises:
            CutError: naming the parameter.
            ConfigError: if it is in no optimizer.
        """
        self._watch.after_step()

    def cross(self, interface: Interface, h: Tensor) -> Tensor:
        """Module(s) below ``interface`` have finished: they learn now. Return what goes on."""
        name = interface.name
        turn = self._turns[self._ends_at[name]]
        seen = interface.batch_first(h)
        crossed = Crossed(self._batch, seen.detach())
        self._reach(turn)
        grad = self._credit(interface, seen, crossed, turn) if turn.updates else None
        turn.end(h, None if grad is None else interface.as_made(grad))
        if crossed.credit is not None and crossed.credit.wait:
            turn.wait(crossed)
        above = crossed
        if interface.input_rule is not None:
            above = self._supply(interface, interface.input_rule, crossed, turn)
        self._end(turn)
        above = self._mail.pass_up(name, above, crossed)
        if above is None:
            raise NothingAbove
        self._batch = above.batch
        return self._feed(interface, above)

    def _credit(self, interface: Interface, h: Tensor, crossed: Crossed, turn: Turn) -> Tensor | None:
        """Ask the rule; return the gradient for ``h`` in the criterion's units, None if there is none yet.

        Args:
            interface: the interface.
            h: the message, the batch first.
            crossed: it is kept here until its message has come.
            turn: of the module below.
        """
        info = crossed.batch.info
        refuse_half(interface.name, h)
        interface.rule.check(h, info)
        crossed.credit = credit = interface.rule.credit(h, info)
        if credit.loss is not None:
            credit.loss.backward()
            turn.learned = True
        crossed.asked = self._step
        if self._mail.is_late(interface.name):
            credit.pending = ()  # the rule's parameters will have changed when the message comes
        turn.value = credit.value
        self._log("credit", interface.name, crossed.batch)
        if credit.delta is None or credit.wait:
            return None
        return credit.delta * (1.0 / self.net.units.divisor(h))  # a product is faster

    def _supply(self, interface: Interface, rule: InputRule, crossed: Crossed, turn: Turn) -> Crossed:
        """Return what stands in for ``h`` above the interface; let its rule learn from ``h``."""
        ahead, batch = self._mail.ahead(interface.name, crossed.batch)
        info = crossed.batch.info
        rule.check(batch.info.inputs, batch.info)
        assert batch.info.inputs is not None
        assert info.inputs is not None
        supply = rule.supply(batch.info.inputs, batch.info)
        self._log("supply", interface.name, batch)
        if turn.updates:
            loss = rule.observe(info.inputs, info, crossed.h, () if ahead else supply.pending)
            if loss is not None and loss.requires_grad:
                loss.backward()
                turn.learned = True
        return Crossed(batch, supply.h)

    def _feed(self, interface: Interface, crossed: Crossed) -> Tensor:
        """Feed the modules above from a new leaf; its gradient will be the message."""
        takers = self._consumers[interface.name]
        rule = interface.rule
        updates = all(self._turns[k].updates for k in takers)
        if interface.input_rule is not None and updates and rule.listens:
            # The message will belong to the synthetic input: so must the credit that it is compared with.
            crossed.credit, crossed.asked = rule.credit(crossed.h, crossed.batch.info), self._step
        given = crossed.credit is not None and crossed.credit.delta is not None
        read = rule.listens or crossed.waiting is not None or (self.monitor is not None and given)
        crossed.leaf = leaf = crossed.h.detach().requires_grad_(read and updates)
        crossed.missing = len(takers)
        for k in takers:
            self._turns[k].fed[interface.name] = crossed
        self._grad_mode(takers[0])
        return interface.as_made(leaf.clone() if interface.copies else leaf)

    def _grad_mode(self, k: int) -> None:
        """Build no graph for a module that only passes activations on. In a chain modules run in turn."""
        if self._sparse and self._is_chain:
            torch.set_grad_enabled(self._turns[k].updates)

    def at_output(self, output: Any) -> Tensor:
        """The last module has finished: the true gradient is at hand."""
        turn = self._turns[self._ends_at[OUTPUT]]
        loss, turn.value = reduced(self.criterion(output, self._batch.target), self.net.units)
        if not self._seen_criterion:
            self._watch.criterion(loss, tensors_in(output))
            self._seen_criterion = True
        if self._guard is not None:
            self._guard.check("loss", self._step, loss.detach())
        self._reach(turn)
        turn.end(loss, torch.ones_like(loss) if turn.updates else None)
        self._end(turn)
        return loss.detach()

    # -- a module's part of a step --------------------------------------------------------------------

    def _reach(self, turn: Turn) -> None:
        """Log the module's forward, if this is the last of its ends."""
        turn.batch = self._batch
        if len(turn.ends) + 1 == len(self._modules[turn.position].ends):
            self._log("forward", self._names[turn.position], self._batch)
            if self._penalties and turn.updates:
                with torch.enable_grad():
                    turn.penalty = self._penalties.of(self._names[turn.position])

    def _end(self, turn: Turn) -> None:
        """Let a module learn, if all its ends have been reached and none waits for its message."""
        k = turn.position
        module, name = self._modules[k], self._names[k]
        if len(turn.ends) < len(module.ends):
            return
        learned = turn.learned
        if not turn.updates:
            self._log("skip", name, turn.batch)
        elif not turn.missing:
            learned |= self._backward(turn)
        due = self._mail.due(module.inputs, self._step)
        for interface, crossed in due:
            self._observe(self.net.interfaces[interface], crossed)
            learned = True
        if not turn.missing:
            turn.drop()
        turn.learned, turn.done = False, True
        optimizers = self._optimizers[k]
        if optimizers and learned:
            step_all(optimizers)
            if name not in self._record.updated:
                self._record.updated.append(name)
            self._log("update", name, turn.batch)
        for interface, _ in due:
            # Where modules wait, a message may be complete when the module that its rule is updated with has had its turn.
            owner = self._consumers[interface][-1]
            if owner != k and self._turns[owner].done:
                step_all(self._optimizers[owner])
        for interface, crossed in due:
            self._release(self.net.interfaces[interface], crossed)

    def _backward(self, turn: Turn) -> bool:
        """Use the module's graph, which frees it; return whether there was credit to learn from."""
        k = turn.position
        self._watch.before_learning(self._names[k])
        roots, grads = list(turn.ends), list(turn.grads)
        if turn.penalty is not None:
            roots.append(turn.penalty)
            grads.append(torch.ones_like(turn.penalty))
        try:
            if not run_backward(roots, grads):
                return False
        except RuntimeError as error:
            raise reused(self._names[k], error) from error
        self._log("backward", self._names[k], turn.batch)
        for name in self._modules[k].inputs:
            crossed = turn.fed[name]
            crossed.missing -= 1
            leaf = crossed.leaf
            # Complete when every module that this interface feeds has added its part.
            if crossed.missing or leaf is None or leaf.grad is None:
                continue
            gradient = leaf.grad.mul_(self.net.units.divisor(leaf))  # the leaf is dropped: in place
            if self._guard is not None:
                self._guard.check(name, self._step, gradient)
            crossed.message, crossed.leaf = Message(gradient, self._value(turn, name)), None
            self._log("message", name, crossed.batch)
            self._mail.pass_down(name, crossed, self._step)
        return True

    def _value(self, turn: Turn, name: str) -> Tensor | None:
        """Return the loss values of the message at an interface: known where nothing branches only."""
        branches = len(self._modules[turn.position].ends) > 1 or len(self._consumers[name]) > 1
        return None if branches else turn.value

    def _release(self, interface: Interface, crossed: Crossed) -> None:
        """Let the module below learn, if it has waited for this message."""
        if crossed.waiting is None:
            return
        assert crossed.message is not None
        (turn, end), crossed.waiting = crossed.waiting, None
        gradient = interface.rule.accept(crossed.message, crossed.batch.info)
        scaled = gradient * (1.0 / self.net.units.divisor(gradient))
        turn.release(end, interface.as_made(scaled), crossed.message.loss)
        self._end(turn)

    def _observe(self, interface: Interface, crossed: Crossed) -> None:
        """Let the rule learn from one message."""
        rule, info, credit, message = interface.rule, crossed.batch.info, crossed.credit, crossed.message
        assert message is not None
        if self.monitor is not None and credit is not None:
            self.monitor.record(interface.name, credit.delta, message.gradient)
        if not rule.listens:
            return
        # A message may be late by this interface's lag, or because the module above waits for one that is.
        if credit is not None and credit.pending and crossed.asked == self._step:
            run_backward(credit.pending, pending_gradient(rule, crossed.h, info, message, credit.pending))
        else:
            with torch.enable_grad():  # the module below may be one that drew no update
                loss = rule.observe(crossed.h, info, message)
            if loss is not None and loss.requires_grad:
                loss.backward()
        self._log("observe", interface.name, crossed.batch)

    def _log(self, kind: Any, where: str, batch: Batch | None) -> None:
        if self.timeline is not None and batch is not None:
            self.timeline.add(kind, where, self._step, batch.entered)
