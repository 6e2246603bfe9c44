"""What happens at the cuts of the in-process engine.

Each module learns as soon as its own forward pass is done.

::

    forward of module k ──► interface k: credit δ̂ₖ = Mₖ(hₖ, c)
                                │ 1. module k runs backward from δ̂ₖ, which frees its graph
                                │ 2. this produces δₖ₋₁, the message for interface k−1, which Mₖ₋₁ observes
                                │ 3. one optimizer step updates module k, and Mₖ₋₁
                                ▼
    forward of module k+1 on a detached hₖ …; at the output the true gradient replaces δ̂

The user's own forward runs unchanged: the three steps happen inside the forward hooks at the cuts.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from ...core import Decoupled, Info
from ...core.devices import cuda_devices
from ...core.events import Kind
from ...core.graph import OUTPUT
from ...core.in_flight import Batch, InFlight
from ...core.instruments import Instruments
from ...core.interface import Interface
from ...core.outputs import output_of, tensors_in
from ...core.port import InputPort, Port, run_backward
from ..base import Criterion, StepRecord, check_loss, reduce_loss
from ..optimizers import zero_grad
from ..penalty import Penalties
from ..replay import ForwardReplay, replaying
from ..watch import GradientWatch, explain_backward_error
from .mailboxes import Mailboxes
from .module_step import ModuleStep, PendingEnd
from .updates import Updates

__all__ = ["CutHandler", "StopForward"]


class StopForward(BaseException):
    """Ends a forward pass at an interface where nothing has come through the forward lag yet.

    Never leaves the engine.
    """


class CutHandler:
    """Handles the cuts of a network in each step: asks the rules, runs backward, and updates the modules.

    Args:
        net: the network.
        criterion: the user's criterion.
        optimizers: the optimizers of each module.
        mailboxes: the messages in flight at the interfaces.
        updates: makes the updates of the modules.
        penalties: the penalties of the modules.
        instruments: the guard, monitor and timeline.
        sparse: whether modules draw in each step if they update.
    """

    def __init__(
        self,
        net: Decoupled,
        criterion: Criterion,
        optimizers: Sequence[Sequence[Optimizer]],
        mailboxes: Mailboxes,
        updates: Updates,
        penalties: Penalties,
        instruments: Instruments,
        *,
        sparse: bool,
    ) -> None:
        graph = net.graph
        self.net = net
        self.criterion = criterion
        self.instruments = instruments
        self._ports = {n: Port(i.rule, net.units, instruments) for n, i in net.interfaces.items()}
        self._input_ports = {
            n: InputPort(i.input_rule, instruments)
            for n, i in net.interfaces.items()
            if i.input_rule is not None
        }
        self._modules = graph.modules
        self._names = [m.name for m in graph.modules]
        self._ends_at = {end: k for k, m in enumerate(graph.modules) for end in m.ends}
        self._consumers = {name: graph.consumers(name) for name in graph.sites}
        self._is_chain = graph.is_chain
        # The weight and bias of the first layer, of each module that no interface feeds.
        self._lowest = {
            k: [net.model.get_parameter(name) for name in m.parameters[:2]]
            for k, m in enumerate(graph.modules)
            if not m.inputs
        }
        self._own = [[net.model.get_parameter(n) for n in m.parameters] for m in graph.modules]
        self._optimizers = optimizers
        self._mailboxes = mailboxes
        self._updates = updates
        self._penalties = penalties
        self._watch = GradientWatch(net, [o for own in optimizers for o in own])
        self._seen_criterion = False
        self._sparse = sparse
        self._needs_output_error = net.needs_output_error
        # Hooks on modules (a counter of operations has some) refuse leaves whose gradient is asked for by `grad`.
        self._feeds_views = any(i.rule.sends_ahead or i.rule.corrects for i in net.interfaces.values())
        # The state of the present step:
        self._step = 0
        self._module_steps: list[ModuleStep] = []
        self._replay: ForwardReplay | None = None
        self._batch = Batch(Info(), None, 0)
        self._record = StepRecord(0)

    def begin(
        self, batch: Batch, record: StepRecord, updates: Sequence[bool], replay: ForwardReplay | None = None
    ) -> None:
        """Begin a step.

        Args:
            batch: the batch that the lowest module works on.
            record: the record to fill in; it has the number of the step.
            updates: for each module, whether it has drawn an update.
            replay: the conditions of the forward pass, if modules wait over steps.
        """
        self._watch.clear_gradients()
        self._step = self.instruments.step = record.step
        self._batch, self._record = batch, record
        self._replay = replay
        self._module_steps = [
            ModuleStep(k, replay, updates=draw, step=record.step) for k, draw in enumerate(updates)
        ]
        self._grad_mode(0)

    def end(self) -> None:
        """End a step: drop every tensor."""
        self._module_steps = []
        self._replay = None

    def update_late(self) -> None:
        """At the end of a step, update the modules that learn late and whose microbatches are complete."""
        for k, name in enumerate(self._names):
            if self._updates.end_of_step(k, self._step):
                self._note_update(k, self._module_steps[k].batch, name)

    def check(self) -> None:
        """Refuse gradients that nothing has used, at the end of a step.

        Raises:
            CutError: naming the parameter.
            ConfigError: if the parameter is in no optimizer.
        """
        self._watch.check_after_step()

    def cross(self, interface: Interface, h: Tensor) -> Tensor:
        """Let the module below an interface learn, now that its forward pass is done.

        Return the input of the modules above.
        """
        name = interface.name
        module_step = self._module_steps[self._ends_at[name]]
        seen = interface.batch_first(h)
        self._reach_end(module_step)
        if module_step.updates:
            flight = self._ask(interface, seen, module_step)
        else:
            # The cut: no credit is asked for, and no gradient may flow from the modules above into this one.
            flight = InFlight(name, self._batch, seen.detach())
        module_step.updates &= flight.finite
        grad = self._ports[name].learned_from(flight)
        module_step.end(h, None if grad is None else interface.as_made(grad))
        self._keep_for_later(interface, flight, module_step)
        above = flight
        if interface.input_rule is not None:
            above = self._supply(name, flight, module_step)
        self.take_turn(module_step)
        above = self._mailboxes.pass_up(name, above, flight)
        if above is None:
            raise StopForward
        self._batch = above.batch
        fed = self._feed(interface, above)
        if self._replay is not None:
            self._replay.save_random_state(name)
        return fed

    def _keep_for_later(self, interface: Interface, flight: InFlight, module_step: ModuleStep) -> None:
        """Note what the message will bring to the module below: what it learns from, or a correction of its credit."""
        credit = flight.credit
        if credit is None or not flight.finite:
            return
        if credit.wait:
            end = module_step.wait()
            flight.release = PendingEnd(module_step, end, interface, self.take_turn)
            if credit.sends is not None:
                port = self._ports[interface.name]
                module_step.sends[end] = interface.as_made(
                    port.units_of(flight.batch).to_criterion(credit.sends)
                )
        elif interface.rule.corrects and credit.delta is not None:
            module_step.corrections += 1
            module_step.keeps_graph |= not interface.rule.recomputes
            end = len(module_step.ends) - 1
            flight.release = PendingEnd(module_step, end, interface, self.take_turn)

    def _ask(self, interface: Interface, h: Tensor, module_step: ModuleStep) -> InFlight:
        """Ask the rule for the credit of a message, ``(B, ...)``."""
        flight = self._ports[interface.name].ask(h, self._batch, self._step)
        flight.made = self._updates.made[module_step.position]
        credit = flight.credit
        assert credit is not None
        module_step.learned |= credit.loss is not None and flight.finite
        module_step.value = credit.value
        if self._mailboxes.is_late(interface.name):
            flight.settle()  # the rule's parameters will have changed when the message arrives
        return flight

    def _supply(self, name: str, flight: InFlight, module_step: ModuleStep) -> InFlight:
        """Return a synthetic input for the module above in place of ``h``; its rule learns from ``h``."""
        ahead, batch = self._mailboxes.ahead(name, flight.batch)
        port = self._input_ports[name]
        supply = port.supply(batch)
        if module_step.updates:
            module_step.learned |= port.observe(flight.batch, flight.h, () if ahead else supply.pending)
        return InFlight(name, batch, supply.h)

    def _feed(self, interface: Interface, flight: InFlight) -> Tensor:
        """Return the input of the modules above: a new leaf, whose gradient will be the message."""
        name = interface.name
        takers, port = self._consumers[name], self._ports[name]
        updates = all(self._module_steps[k].updates for k in takers)
        if interface.input_rule is not None and updates and port.rule.listens:
            # The message will belong to the synthetic input, so the credit that it is compared with must too.
            flight.credit, flight.version = port.rule.credit(flight.h, flight.info), self._step
        leaf = port.feed(flight, readers=len(takers), learns=updates)
        for k in takers:
            self._module_steps[k].fed[name] = flight
        self._grad_mode(takers[0])
        fed = leaf.view_as(leaf) if self._feeds_views and leaf.requires_grad else leaf
        return interface.as_made(leaf.clone() if interface.copies else fed)

    def _grad_mode(self, k: int) -> None:
        """Disable gradients for a module that does not update.

        Only in a chain do modules run strictly one after the other.
        """
        if self._sparse and self._is_chain:
            torch.set_grad_enabled(self._module_steps[k].updates)

    def at_output(self, output: Any) -> Tensor:
        """Let the last module learn from the criterion's loss; return the loss, detached."""
        module_step = self._module_steps[self._ends_at[OUTPUT]]
        loss, module_step.value = reduce_loss(
            self.criterion(output, self._batch.target), self.net.units.with_shares(self._batch.shares)
        )
        if not self._seen_criterion:
            self._watch.check_loss(loss, tensors_in(output))
            self._seen_criterion = True
        self._watch_output(module_step, output)
        # Detached, here and below: the record and the guard read the value, and must not keep the graph.
        module_step.updates &= check_loss(self.instruments, loss.detach(), self._batch.target, self.net.units)
        self._reach_end(module_step)
        module_step.end(loss, torch.ones_like(loss) if module_step.updates else None)
        self.take_turn(module_step)
        return loss.detach()

    def rebuild(
        self, state: Mapping[str, Any], module_steps: Sequence[ModuleStep], *, copies: bool = True
    ) -> None:
        """Rebuild the graphs of modules that wait for a message, when a run is resumed or a graph was not kept.

        Args:
            state: the conditions of the forward pass of that step, see `ForwardReplay.state_dict`.
            module_steps: the modules of that step that wait, with the messages that fed them.
            copies: whether the graphs keep copies of the weights.
        """
        waiting = {module_step.position: module_step for module_step in module_steps}
        fed = {name: flight for module_step in module_steps for name, flight in module_step.fed.items()}

        def reach(end: str, value: Tensor) -> None:
            module_step = waiting.get(self._ends_at[end])
            if module_step is None:
                return
            module_step.ends.append(value)
            module = self._modules[module_step.position]
            if self._penalties and len(module_step.ends) == len(module.ends):
                module_step.penalty = self._penalties.compute(module.name)

        def cross(interface: Interface, h: Tensor) -> Tensor:
            reach(interface.name, h)
            if all(len(t.ends) == len(self._modules[k].ends) for k, t in waiting.items()):
                raise StopForward  # the modules above have learned already
            replay.restore_random_state(interface.name)
            flight = fed.get(interface.name)
            # Cut as in the first pass: each module gets a leaf, so that its graph ends at its own input.
            leaf = h.detach() if flight is None else interface.as_made(flight.h)
            if flight is not None and flight.fed is not None:
                kept = flight.fed
                leaf = interface.as_made(kept.view_as(kept) if self._feeds_views else kept)
            return leaf.clone() if interface.copies else leaf

        devices = cuda_devices(self.net)
        with (
            replaying(self.net.model, state, devices, copies=copies) as replay,
            self.net.crossed_by(cross),
        ):
            args, kwargs = replay.passed
            with suppress(StopForward):
                output = self.net.model(*args, **kwargs)
                module_step = waiting[self._ends_at[OUTPUT]]
                assert module_step.batch is not None
                reach(
                    OUTPUT,
                    reduce_loss(
                        self.criterion(output, module_step.batch.target),
                        self.net.units.with_shares(module_step.batch.shares),
                    )[0],
                )
                self._watch_output(module_step, output)
        for module_step in module_steps:
            module_step.replay = replay

    def _watch_output(self, module_step: ModuleStep, output: Any) -> None:
        """Keep the gradient of the network's output, if a rule needs it."""
        if self._needs_output_error:
            found = output_of(output)
            if found.requires_grad:
                found.retain_grad()
                module_step.output = found

    # -- a module's part of a step --------------------------------------------------------------------

    def _reach_end(self, module_step: ModuleStep) -> None:
        """Log the module's forward pass and compute its penalty, if this is the last of its ends."""
        module_step.batch = self._batch
        if len(module_step.ends) + 1 == len(self._modules[module_step.position].ends):
            self._log("forward", self._names[module_step.position], self._batch)
            if self._penalties and module_step.updates:
                with torch.enable_grad():
                    module_step.penalty = self._penalties.compute(self._names[module_step.position])

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
            self._log("skip", name, module_step.batch)
        elif not module_step.missing:
            learned |= self._backward(module_step)
        due = self._observe_due(module_step)
        learned |= any(self._ports[interface].rule.learns_from_messages for interface, _ in due)
        if not module_step.missing and not module_step.corrections:
            module_step.drop()
        module_step.learned, module_step.done = False, True
        complete = not module_step.missing
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
        self._log("update", self._names[k], batch)

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
            self._log("backward", self._names[k], module_step.batch)
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
            self._updates.correct(k, [grads.get(id(p)) for p in self._own[k]])
            _add_to(leaves, found[len(own) :])
        self._send(module_step)

    def _recompute(self, module_step: ModuleStep) -> None:
        """Make a module's graph anew: the forward pass of its step, with the present weights."""
        assert module_step.replay is not None
        state = module_step.replay.state_dict()
        buffers = {name for name, _ in self.net.model.named_buffers()}
        stash = {name: value for name, value in state["stash"].items() if name in buffers}
        self.rebuild({**state, "stash": stash}, [module_step], copies=False)

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
        own = self._lowest[k]
        grad = min((p.grad for p in own if p.grad is not None), key=Tensor.numel, default=None)
        if grad is None or self.instruments.check(self._names[k], grad, "gradient"):
            return True
        for optimizer in self._optimizers[k]:
            zero_grad(optimizer)
        return False

    def _value(self, module_step: ModuleStep, name: str) -> Tensor | None:
        """Return the loss values for the message at an interface.

        They are known only where the network does not branch.
        """
        branches = len(self._modules[module_step.position].ends) > 1 or len(self._consumers[name]) > 1
        return None if branches else module_step.value

    def _log(self, kind: Kind, where: str, batch: Batch | None) -> None:
        if batch is not None:
            self.instruments.log(kind, where, batch.entered)


def _add_to(leaves: Sequence[Tensor], grads: Sequence[Tensor | None]) -> None:
    """Add gradients to those that leaves have."""
    for leaf, grad in zip(leaves, grads, strict=True):
        if grad is not None:
            leaf.grad = grad if leaf.grad is None else leaf.grad + grad
