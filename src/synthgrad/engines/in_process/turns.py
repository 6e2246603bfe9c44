"""A module's turn in a step of the in-process engine: it runs backward, sends its message, and is updated.

::

    reached all its ends ──► 0. send ahead      (a rule that interlocks: the message is made from something else, at once)
                             1. run backward    from the credit, or from the message that it has waited for
                             2. send            the gradients of its inputs, to be observed at the interfaces below
                             3. observe         the messages that are due at its inputs
                             4. update          the module, and the rules that are updated with it
                             5. release         what the modules below have waited for: each has its own turn

A module whose credit is corrected later leaves out 2. When the message has come, it runs backward once more from the
difference, for its next update, and then does 2, 3 and 5.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.optim import Optimizer

from ...core import Decoupled
from ...core.events import Kind
from ...core.in_flight import Batch, InFlight
from ...core.instruments import Instruments
from ...core.port import Port, run_backward
from ..base import StepRecord
from ..optimizers import zero_grad
from ..updates import Updates
from ..watch import GradientWatch, explain_backward_error
from .mailboxes import Mailboxes
from .module_step import ModuleStep, PendingEnd

__all__ = ["Turns"]


class Turns:
    """Lets modules have their turns.

    Args:
        net: the network.
        ports: the rules at the interfaces, by name.
        optimizers: the optimizers of each module.
        mailboxes: the messages in flight at the interfaces.
        updates: makes the updates of the modules.
        watch: finds gradients in the wrong place.
        instruments: the guard, monitor and timeline.
        recompute: makes the graph of a module anew, whose turn was in an earlier step.
    """

    def __init__(
        self,
        net: Decoupled,
        ports: dict[str, Port],
        optimizers: Sequence[Sequence[Optimizer]],
        mailboxes: Mailboxes,
        updates: Updates,
        watch: GradientWatch,
        instruments: Instruments,
        recompute: Callable[[ModuleStep], None],
    ) -> None:
        graph = net.graph
        self.instruments = instruments
        self._ports = ports
        self._modules = graph.modules
        self._names = [m.name for m in graph.modules]
        self._ends_at = {end: k for k, m in enumerate(graph.modules) for end in m.ends}
        self._consumers = {name: graph.consumers(name) for name in graph.sites}
        self._own = [[net.model.get_parameter(n) for n in m.parameters] for m in graph.modules]
        self._optimizers = optimizers
        self._mailboxes = mailboxes
        self._updates = updates
        self._watch = watch
        self._recompute = recompute
        # The state of the present step:
        self._step = 0
        self._module_steps: Sequence[ModuleStep] = ()
        self._record = StepRecord(0)

    def begin(self, module_steps: Sequence[ModuleStep], record: StepRecord) -> None:
        """Begin a step.

        Args:
            module_steps: the part of each module in it.
            record: the record to fill in; it has the number of the step.
        """
        self._step, self._module_steps, self._record = record.step, module_steps, record

    def end(self) -> None:
        """End a step: drop every tensor."""
        self._module_steps = ()

    def num_updates(self, k: int) -> int:
        """Return how many updates a module has made."""
        return self._updates.made[k]

    def update_late(self) -> None:
        """At the end of a step, update the modules that learn late and whose microbatches are complete."""
        for k, name in enumerate(self._names):
            if self._updates.end_of_step(k, self._step):
                self._note_update(k, self._module_steps[k].batch, name)

    def take_turn(self, module_step: ModuleStep) -> None:
        """Let a module learn and send its message, if it has reached all its ends and waits for no message."""
        k = module_step.position
        module, name = self._modules[k], self._names[k]
        if len(module_step.ends) < len(module.ends):
            return
        if module_step.sends and not module_step.has_sent:
            self._send_ahead(module_step)
        learned = module_step.learned
        if not module_step.updates:
            self.log("skip", name, module_step.batch)
        elif not module_step.missing:
            learned |= self._backward(module_step)
        due = self._observe_due(module_step)
        learned |= any(self._ports[interface].rule.learns_from_messages for interface, _ in due)
        if not module_step.missing and not module_step.corrections:
            module_step.drop()
        module_step.learned, module_step.done = False, True
        # In a step in which it has drawn no update, a module is not updated by corrections either.
        complete = module_step.updates and not module_step.missing
        if self._updates.add(k, self._step, module_step.step, learned=learned, complete=complete):
            self._note_update(k, module_step.batch, name)
        self._release(due, k)

    def _observe_due(self, module_step: ModuleStep) -> list[tuple[str, InFlight]]:
        """Let the rules at a module's inputs observe the messages that are due, and return these."""
        due = self._mailboxes.due(self._modules[module_step.position].inputs, self._step)
        for interface, flight in due:
            assert flight.message is not None
            flight.message.age = self._updates.made[self._ends_at[interface]] - flight.made
            flight.message.age_s = time.monotonic() - flight.crossed_at
            self._ports[interface].observe(flight, self._step)
        return due

    def _release(self, due: Sequence[tuple[str, InFlight]], k: int) -> None:
        """Hand messages that module ``k`` has observed to the modules below."""
        for interface, _ in due:
            # If modules wait, a message may become complete after the module that updates its rule has done its part.
            owner = self._consumers[interface][-1]
            learns = self._ports[interface].rule.learns_from_messages
            if owner == k or not learns or not self._module_steps[owner].done:
                continue
            turn = self._module_steps[owner]
            if self._updates.add(owner, self._step, self._step, learned=True, complete=False):
                self._note_update(owner, turn.batch)
        for interface, flight in due:
            if flight.release is not None and self._ports[interface].rule.corrects:
                self._correct(flight)
            else:
                self._ports[interface].release(flight)

    def _note_update(self, k: int, batch: Batch | None, name: str | None = None) -> None:
        """Log an update; where a name is given, the module itself has learned, and not only its rules."""
        if name is not None and name not in self._record.updated:
            self._record.updated.append(name)
        self.log("update", self._names[k], batch)

    def _backward(self, module_step: ModuleStep) -> bool:
        """Run backward through the module, which frees its graph unless a correction will need it.

        Return whether there was credit to learn from.
        """
        k = module_step.position
        self._watch.check_before_backward(self._names[k])
        roots, grads = list(module_step.ends), list(module_step.grads)
        if module_step.penalty is not None:
            roots.append(module_step.penalty)
            grads.append(torch.ones_like(module_step.penalty))
        corrected = bool(module_step.corrections or module_step.differences)
        kept = corrected and (module_step.keeps_graph or not module_step.corrections)
        try:
            learns = run_backward(roots, grads, retain_graph=kept)
        except RuntimeError as error:
            raise explain_backward_error(self._names[k], error) from error
        if learns:
            self.log("backward", self._names[k], module_step.batch)
        if learns and not self._modules[k].inputs and not self._has_finite_gradients(k):
            learns = False
        if corrected and not kept:
            module_step.ends.clear()
            module_step.penalty = None
        if not corrected:
            self._send(module_step)
        elif not module_step.corrections:  # all corrections have come before the module had its turn
            self._apply_corrections(module_step)
        return learns

    def _send(self, module_step: ModuleStep) -> None:
        """Send the gradients of the module's inputs down, unless that has been done ahead."""
        if module_step.has_sent:
            return
        module_step.has_sent = True
        for name in self._modules[module_step.position].inputs:
            flight = module_step.fed[name]
            flight.missing -= 1
            leaf = flight.fed
            # The message is complete when every module that this interface feeds has added its part. A module without
            # credit adds nothing.
            if flight.missing or leaf is None or leaf.grad is None:
                continue
            port = self._ports[name]
            if module_step.output is not None and module_step.output.grad is not None:
                module_step.output_error = port.units_of(flight.batch).to_example(
                    module_step.output.grad, like=flight.h
                )
            # The message owns the tensor: a later backward pass must not add to it.
            gradient, leaf.grad = leaf.grad, None
            port.answer(flight, gradient, self._value(module_step, name), module_step.output_error)
            self._mailboxes.pass_down(name, flight, self._step)

    def _send_ahead(self, module_step: ModuleStep) -> None:
        """Send a message made from what the rules at the module's ends send ahead of what the module will learn from."""
        ends, grads = zip(*((module_step.ends[e], g) for e, g in module_step.sends.items()), strict=True)
        leaves = self._leaves(module_step)
        if leaves:
            try:
                found = torch.autograd.grad(ends, leaves, grads, retain_graph=True, allow_unused=True)
            except RuntimeError as error:
                raise explain_backward_error(self._names[module_step.position], error) from error
            _add_to(leaves, found)
        self._send(module_step)

    def _correct(self, flight: InFlight) -> None:
        """Correct the credit that the module below an interface has learned from, now that the message has come."""
        pending, flight.release = flight.release, None
        assert isinstance(pending, PendingEnd)
        assert flight.credit is not None
        assert flight.credit.delta is not None
        assert flight.message is not None
        module_step, port = pending.module_step, self._ports[flight.name]
        module_step.corrections -= 1
        module_step.value = module_step.value if flight.message.loss is None else flight.message.loss
        module_step.output_error = flight.message.output_error
        if flight.finite:
            delta, message = flight.credit.delta, flight.message
            difference, factor = port.rule.correction(delta, message, flight.info)
            made = pending.interface.as_made(port.units_of(flight.batch).to_criterion(difference))
            module_step.differences[pending.end] = (made, factor)
        if module_step.corrections or module_step.missing or not module_step.done:
            return
        self._apply_corrections(module_step)
        due = self._observe_due(module_step)
        module_step.drop()
        k = module_step.position
        learned = any(self._ports[interface].rule.learns_from_messages for interface, _ in due)
        if learned and self._updates.add(k, self._step, self._step, learned=True, complete=False):
            self._note_update(k, module_step.batch)
        self._release(due, k)

    def _apply_corrections(self, module_step: ModuleStep) -> None:
        """Run backward once more from the corrections, for the module's next update and for its own message."""
        k = module_step.position
        if not module_step.ends:
            self._recompute(module_step)
        own = [p for p in self._own[k] if p.requires_grad]
        leaves = self._leaves(module_step)
        by_factor: dict[float, list[int]] = {}
        for end, (_, factor) in module_step.differences.items():
            by_factor.setdefault(factor, []).append(end)
        for n, (factor, ends) in enumerate(by_factor.items(), 1):
            try:
                found = torch.autograd.grad(
                    [module_step.ends[e] for e in ends],
                    [*own, *leaves],
                    [module_step.differences[e][0] for e in ends],
                    retain_graph=n < len(by_factor),
                    allow_unused=True,
                )
            except RuntimeError as error:
                raise explain_backward_error(self._names[k], error) from error
            grads = {id(p): g * factor for p, g in zip(own, found, strict=False) if g is not None}
            smallest = min(grads.values(), key=Tensor.numel, default=None)
            if smallest is None or self.instruments.check(self._names[k], smallest, "gradient"):
                self._updates.correct(k, [grads.get(id(p)) for p in self._own[k]])
            _add_to(leaves, found[len(own) :])
        self._send(module_step)

    def _leaves(self, module_step: ModuleStep) -> list[Tensor]:
        """Return what the module was fed with, where a message is wanted."""
        fed = [module_step.fed[name].fed for name in self._modules[module_step.position].inputs]
        return [leaf for leaf in fed if leaf is not None and leaf.requires_grad]

    def _has_finite_gradients(self, k: int) -> bool:
        """Check the gradients of a module that sends no message, and drop them if they are not finite.

        In other modules the check of the message does this. A value that is not finite on its way down spoils
        all gradients of the lowest layer, so it is enough to check the smallest of them.
        """
        if self.instruments.guard is None:
            return True
        first = self._own[k][:2]  # the weight and bias of the first layer
        grad = min((p.grad for p in first if p.grad is not None), key=Tensor.numel, default=None)
        if grad is None or self.instruments.check(self._names[k], grad, "gradient"):
            return True
        for optimizer in self._optimizers[k]:
            zero_grad(optimizer)
        for p in self._own[k]:
            p.grad = None  # those that other modules use too are in none of its optimizers
        return False

    def _value(self, module_step: ModuleStep, name: str) -> Tensor | None:
        """Return the loss values for the message at an interface.

        They are known only where the network does not branch.
        """
        branches = len(self._modules[module_step.position].ends) > 1 or len(self._consumers[name]) > 1
        return None if branches else module_step.value

    def log(self, kind: Kind, where: str, batch: Batch | None) -> None:
        """Put an event of a module on the timeline, unless it has no batch yet."""
        if batch is not None:
            self.instruments.log(kind, where, batch.entered)


def _add_to(leaves: Sequence[Tensor], grads: Sequence[Tensor | None]) -> None:
    """Add gradients to those that leaves have."""
    for leaf, grad in zip(leaves, grads, strict=True):
        if grad is not None:
            leaf.grad = grad if leaf.grad is None else leaf.grad + grad
