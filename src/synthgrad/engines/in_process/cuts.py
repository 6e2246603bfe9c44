"""What happens at the cuts of the in-process engine.

Each module learns as soon as its own forward pass is done.

::

    forward of module k ──► interface k: credit δ̂ₖ = Mₖ(hₖ, c)
                                │ 1. module k runs backward from δ̂ₖ, which frees its graph
                                │ 2. this produces δₖ₋₁, the message for interface k−1, which Mₖ₋₁ observes
                                │ 3. one optimizer step updates module k, and Mₖ₋₁
                                ▼
    forward of module k+1 on a detached hₖ …; at the output the true gradient replaces δ̂

The user's own forward runs unchanged: the three steps happen inside the forward hooks at the cuts. ``turns.py`` says what
a module does in them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from ...core import Decoupled, Info
from ...core.devices import cuda_devices
from ...core.graph import OUTPUT
from ...core.in_flight import Batch, InFlight
from ...core.instruments import Instruments
from ...core.interface import Interface
from ...core.outputs import output_of, tensors_in
from ...core.port import InputPort, Port, Wire
from ..base import Criterion, StepRecord, check_loss, reduce_loss
from ..penalty import Penalties
from ..replay import ForwardReplay, replaying
from ..updates import Updates
from ..watch import GradientWatch
from .mailboxes import Mailboxes
from .module_step import ModuleStep, PendingEnd
from .turns import Turns

__all__ = ["CutHandler", "StopForward"]


class StopForward(BaseException):
    """Ends a forward pass at an interface where nothing has come through the forward lag yet.

    Never leaves the engine.
    """


class CutHandler:
    """Handles the cuts of a network in each step: asks the rules, lets the modules have their turns, and feeds them.

    Args:
        net: the network.
        criterion: the user's criterion.
        optimizers: the optimizers of each module.
        mailboxes: the messages in flight at the interfaces.
        updates: makes the updates of the modules.
        penalties: the penalties of the modules.
        instruments: the guard, monitor and timeline.
        sparse: whether modules draw in each step if they update.
        wires: by interface, what activations and messages cross; nothing for the others.
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
        wires: Mapping[str, Wire],
    ) -> None:
        graph = net.graph
        self.net = net
        self.criterion = criterion
        self.instruments = instruments
        self._ports = {
            n: Port(i.rule, net.units, instruments, wire=wires.get(n)) for n, i in net.interfaces.items()
        }
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
        self._mailboxes = mailboxes
        self._penalties = penalties
        self._watch = GradientWatch(net, [o for own in optimizers for o in own])
        self._turns = Turns(
            *(net, self._ports, optimizers, mailboxes, updates, self._watch, instruments, self._recompute)
        )
        self._seen_criterion = False
        self._sparse = sparse
        self._needs_output_error = net.needs_output_error
        # Hooks on modules (a counter of operations has some) refuse leaves whose gradient is asked for by `grad`.
        self._feeds_views = any(i.rule.sends_ahead or i.rule.corrects for i in net.interfaces.values())
        # The state of the present step:
        self._module_steps: list[ModuleStep] = []
        self._replay: ForwardReplay | None = None
        self._batch = Batch(Info(), None, 0)
        self._step = 0

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
        self._batch = batch
        self._replay = replay
        self._module_steps = [
            ModuleStep(k, replay, updates=draw, step=record.step) for k, draw in enumerate(updates)
        ]
        self._turns.begin(self._module_steps, record)
        self._grad_mode(0)

    def end(self) -> None:
        """End a step: drop every tensor."""
        self._module_steps = []
        self._turns.end()
        self._replay = None

    @property
    def turns(self) -> Turns:
        """Lets modules have their turns."""
        return self._turns

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
        self._turns.take_turn(module_step)
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
            flight.release = PendingEnd(module_step, end, interface, self._turns.take_turn)
            if credit.sends is not None:
                port = self._ports[interface.name]
                module_step.sends[end] = interface.as_made(
                    port.units_of(flight.batch).to_criterion(credit.sends)
                )
        elif interface.rule.corrects and not credit.final and credit.delta is not None:
            module_step.corrections += 1
            module_step.keeps_graph |= not interface.rule.recomputes
            end = len(module_step.ends) - 1
            flight.release = PendingEnd(module_step, end, interface, self._turns.take_turn)

    def _ask(self, interface: Interface, h: Tensor, module_step: ModuleStep) -> InFlight:
        """Ask the rule for the credit of a message, ``(B, ...)``."""
        flight = self._ports[interface.name].ask(h, self._batch, self._step)
        flight.made = self._turns.num_updates(module_step.position)
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
        self._turns.take_turn(module_step)
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

    def _recompute(self, module_step: ModuleStep) -> None:
        """Make a module's graph anew: the forward pass of its step, with the present weights."""
        assert module_step.replay is not None
        state = module_step.replay.state_dict()
        buffers = {name for name, _ in self.net.model.named_buffers()}
        stash = {name: value for name, value in state["stash"].items() if name in buffers}
        self.rebuild({**state, "stash": stash}, [module_step], copies=False)

    def _watch_output(self, module_step: ModuleStep, output: Any) -> None:
        """Keep the gradient of the network's output, if a rule needs it."""
        if self._needs_output_error:
            found = output_of(output)
            if found.requires_grad:
                found.retain_grad()
                module_step.output = found

    def _reach_end(self, module_step: ModuleStep) -> None:
        """Log the module's forward pass and compute its penalty, if this is the last of its ends."""
        module_step.batch = self._batch
        if len(module_step.ends) + 1 == len(self._modules[module_step.position].ends):
            self._turns.log("forward", self._names[module_step.position], self._batch)
            if self._penalties and module_step.updates:
                with torch.enable_grad():
                    module_step.penalty = self._penalties.compute(self._names[module_step.position])
