"""The clocked engine: modules that tick at different rates and do not wait for each other (DNI §3.3).

::

    step      0    1    2    3    4    5    6    7          A: period 1, unroll 4;  B: period 4, unroll 2
    A  tick   ●    ●    ●    ●▲   ●    ●    ●    ●▲         ● tick   ▲ update
                             │1                  │1         1. A sends h; the rule of A->B gives credit for it
    B  tick                  ●                   ●▲         2. A updates, from its own losses and that credit
                             └────────3──────────┘          3. B's backward, much later, has the true gradients of
                                                               both messages that it has read: the rule learns them

With a rule that waits (`TrueGradient`) the edge is not cut: A and B are one lock group, which runs one backward pass
at the least common multiple of their intervals, here every 8 steps. So backpropagation is this engine with another
rule.

A message that a slow sender's receivers read several times has the sum of what comes back as its gradient; who reads
how often is known from the clocks when it is sent. A message that nobody reads gets no credit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from ...core import ConfigError, Guard, Info, Monitor, ShapeError, Timeline, Units
from ...core.in_flight import InFlight
from ...core.instruments import Instruments
from ...core.port import run_backward
from ...core.units import Reduction
from ..base import Criterion, StepRecord, explain_load_errors, reduce_loss
from ..optimizers import (
    OptimizerFactory,
    clear_autocast_cache,
    has_gradient,
    make_optimizers,
    step_optimizers,
    zero_grad,
)
from ..watch import stray_gradient_error, thawed_error
from .episode import Episode, PendingUpdate, detached
from .exchange import Exchange
from .network import ClockedNetwork, message_of
from .step_inputs import StepInputs, check_names
from .wiring import Edge, LockGroup, Node, Wiring

__all__ = ["Clocked", "ClockedRecord"]


@dataclass(slots=True)
class ClockedRecord(StepRecord):
    """What one step did; ``loss`` is the sum of the losses, None if there was none.

    Attributes:
        losses: by node, detached, on the device.
        outputs: of the nodes that have ticked, detached.
    """

    losses: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    outputs: dict[str, Any] = field(default_factory=dict[str, Any])


class Clocked:
    """Trains named networks, each with its own clock, in one process.

    Args:
        nodes: in the order in which they run within a step. Their modules are trained in place.
        edges: the interfaces between them.
        losses: criterion by node; takes the node's outputs and the target, returns a scalar, or the loss of each
            example ``(B,)``. Losses of an unroll are summed over its ticks.
        optimizer: takes parameters, returns an optimizer; called once for each node, with the parameters of the
            node, of the rules at the edges that lead to it (they speak for it), of its own state's rule, and of
            rules at edges from it that learn from their own loss alone.
        example: external data of one tick by node, batch first: it only tells the shapes.
        rule_options: options for the rules' parameter groups, such as ``{"lr": 1e-3}``.
        reduction: how the criteria reduce: ``"mean"``, ``"sum"``, or a callable that takes a message and returns
            the divisor.
        monitor: measures the quality of credits; None to measure nothing.
        guard: stop with `DivergedError` at a message or loss that is not finite.
        timeline: is filled with what happens, in order; None to keep nothing.

    Attributes:
        net: the `ClockedNetwork`: all modules and rules.
        interval: steps after which every node has just updated.

    Raises:
        ConfigError: if names, clocks, rules or criteria do not fit together.
        ShapeError: if a module does not return what it should.
    """

    def __init__(
        self,
        nodes: Sequence[Node],
        edges: Sequence[Edge],
        losses: Mapping[str, Criterion],
        optimizer: OptimizerFactory,
        *,
        example: Mapping[str, Any],
        rule_options: Mapping[str, Any] | None = None,
        reduction: Reduction = "mean",
        monitor: Monitor | None = None,
        guard: bool | Guard = True,
        timeline: Timeline | None = None,
    ) -> None:
        self._wiring = wiring = Wiring(nodes, edges)
        check_names("losses", losses, wiring.nodes)
        self.net = ClockedNetwork(wiring, example)
        self.interval = wiring.interval
        self.losses = dict(losses)
        self._units = Units(reduction)
        self._instruments = Instruments(Guard.of(guard, skips=False), monitor, timeline)
        self._exchange = Exchange(self.net, self._units, self._instruments)
        # Which rules are updated with which node.
        self._rules_by_node = {name: self._rules_updated_with(node) for name, node in wiring.nodes.items()}
        self._optimizers = {
            name: make_optimizers(
                optimizer,
                name,
                (node.module.named_parameters(), None),
                (
                    [
                        (f"rule {rule}.{n}", p)
                        for rule in self._rules_by_node[name]
                        for n, p in self.net.rule(rule).named_parameters()
                    ],
                    rule_options,
                ),
            )
            for name, node in wiring.nodes.items()
        }
        self._step = 0
        self._record = ClockedRecord(0)
        self.reset()

    @property
    def optimizers(self) -> list[Optimizer]:
        """The optimizers of the nodes, in their order."""
        return [o for own in self._optimizers.values() for o in own]

    def reset(self) -> None:
        """Begin an episode: fresh states, no messages, clocks at their start. What is under way is dropped.

        To lose nothing, end the episode before with ``step(..., last=True)``, which does this itself.
        """
        self._episode = Episode(self.net)

    def step(
        self,
        inputs: Mapping[str, Any],
        targets: Mapping[str, Any] | None = None,
        *,
        context: Tensor | Mapping[str, Tensor] | None = None,
        ids: Tensor | None = None,
        last: bool = False,
    ) -> ClockedRecord:
        """Run one step: each node whose clock says so ticks, and learns where its unroll ends.

        Args:
            inputs: external data by node, batch first; not used where the node does not tick.
            targets: by node, as its criterion wants it; no loss where there is none, or it is None.
            context: of the rules: one for all, or by interface.
            ids: ``(B,)`` int64, which examples these are.
            last: the episode ends: every node learns from what it has, with no credit from beyond.

        Raises:
            ConfigError: if an input or a target names no node, or a target has no criterion or comes at a step in
                which its node does not tick.
            ShapeError: if the batch size, a message or a state changes its form.
            DivergedError: if a message or a loss is not finite.
        """
        clear_autocast_cache()
        step_inputs = StepInputs(self._step, inputs, targets or {}, context, ids, last)
        episode = self._episode
        step_inputs.check(self._wiring, self.losses, self.net.rules, episode.clock)
        episode.check_batch_size(inputs)
        self._record = record = ClockedRecord(self._step)
        self._instruments.step = self._step
        try:
            for name, node in self._wiring.nodes.items():
                if node.ticks(episode.clock):
                    self._tick(node, step_inputs)
                group = self._wiring.group_closed_by(name)
                if group is not None and (last or (episode.clock + 1) % group.interval == 0):
                    self._learn(group, step_inputs)
        except BaseException:
            self.reset()  # what this step has begun must not leak into the next
            for optimizer in self.optimizers:
                zero_grad(optimizer)
            raise
        if record.losses:
            record.loss = torch.stack(list(record.losses.values())).sum()
        self._step += 1
        episode.clock += 1
        if last:
            self.reset()
        elif episode.clock % self.interval == 0:
            episode.settle()
        return record

    def flush(self) -> None:
        """Read what the guard has queued on an accelerator.

        Raises:
            DivergedError: if a message or loss was not finite.
        """
        self._instruments.flush()

    # -- a tick ---------------------------------------------------------------------------------------

    def _tick(self, node: Node, step_inputs: StepInputs) -> None:
        """Run a node: it reads, moves to another state, is judged, and sends."""
        name, episode, wiring = node.name, self._episode, self._wiring
        pending = episode.pending_of(name)
        pending.begun = True
        read = {e.name: self._read(e, pending) for e in wiring.incoming[name] if e.name in episode.latest}
        assert episode.batch_size is not None
        fed = self.net.feed(node, step_inputs.inputs, read, episode.batch_size)
        outputs, state = self.net.call(node, fed, episode.states.get(name))
        self._instruments.log("forward", name, self._step)
        episode.set_state(node, state)
        self._record.outputs[name] = detached(outputs)
        target = step_inputs.targets.get(name)
        if target is not None:
            loss, _ = reduce_loss(self.losses[name](outputs, target), self._units)
            self._instruments.check("loss", loss.detach())
            pending.losses.append(loss)
            self._record.losses[name] = loss.detach()
        for edge in wiring.outgoing[name]:
            self._send(edge, message_of(edge, outputs), step_inputs, pending)

    def _read(self, edge: Edge, pending: PendingUpdate) -> Tensor:
        """Return the latest message on an edge, for one more reader."""
        flight = self._episode.latest[edge.name]
        if flight.missing:
            pending.read.append(flight)
        return self._exchange.read(flight)

    def _send(self, edge: Edge, h: Tensor, step_inputs: StepInputs, pending: PendingUpdate) -> None:
        """Put a message where its receiver finds it, and ask for credit if it will be read."""
        name, episode = edge.name, self._episode
        expected = (episode.batch_size, *self.net.sites[name].shape[1:])
        if h.shape != expected:
            raise ShapeError(
                f"edge '{name}': got a message of shape {tuple(h.shape)}, expected {expected} as in the example; a "
                "message must not change its form"
            )
        reads = self._reads(edge, step_inputs)
        if edge.rule.waits or not reads:
            episode.latest[name] = self._exchange.hand_over(name, h, attached=edge.rule.waits)
            return
        info = step_inputs.info(name, edge.sender, episode.packed_state(edge.receiver))
        episode.latest[name] = self._ask(name, h, info, reads, pending)

    def _reads(self, edge: Edge, step_inputs: StepInputs) -> int:
        """Return how often a message that is sent now will be read."""
        if step_inputs.last:
            return int(self._is_read_at_once(edge))
        return self._wiring.reads(edge, self._episode.clock)

    def _is_read_at_once(self, edge: Edge) -> bool:
        """Is a message read in the very step in which it is sent?"""
        receiver = self._wiring.nodes[edge.receiver]
        return not self._wiring.is_delayed(edge) and receiver.ticks(self._episode.clock)

    def _ask(self, name: str, h: Tensor, info: Info, reads: int, pending: PendingUpdate) -> InFlight:
        """Ask the rule at an interface for credit, and keep it until the sender learns."""
        flight, grad = self._exchange.send(name, h, info, reads)
        if grad is not None:
            pending.credited.append((h, grad, flight))
        return flight

    # -- an update ------------------------------------------------------------------------------------

    def _learn(self, group: LockGroup, step_inputs: StepInputs) -> None:
        """Run the backward pass of a group, let the rules that speak for it learn, and step its optimizers."""
        pending, last = self._episode.pending[group], step_inputs.last
        starts = {} if last else self._end_unrolls(group, step_inputs, pending)
        credited = [(h, grad) for h, grad, flight in pending.credited if not last or self._counts(flight)]
        roots = [*pending.losses, *(h for h, _ in credited)]
        grads = [*(torch.ones_like(loss) for loss in pending.losses), *(grad for _, grad in credited)]
        if run_backward(roots, grads):
            for node in group.nodes:
                self._instruments.log("backward", node.name, self._step)
        for flight in self._complete_messages(group, pending, last=last):
            self._exchange.observe(flight)
        for node in group.nodes:
            self._update(node)
        self._check_used()
        self._episode.begin_update(group, starts)

    def _end_unrolls(
        self, group: LockGroup, step_inputs: StepInputs, pending: PendingUpdate
    ) -> dict[str, InFlight]:
        """Ask for credit for the states that the members hand on; return these."""
        starts: dict[str, InFlight] = {}
        for node in group.nodes:
            layout = self.net.layouts[node.name]
            if node.state_rule is not None and layout is not None:
                flat = layout.pack(self._episode.states[node.name])
                starts[node.name] = self._ask(
                    node.state_name, flat, step_inputs.info(node.state_name, node.name), 1, pending
                )
        return starts

    def _counts(self, flight: InFlight) -> bool:
        """Has a message been read, or will it be in this step, the last of an episode? Else its credit is void."""
        soon = self._is_read_at_once(self._wiring.edges[flight.name])
        return flight.reads > 0 or (soon and self._episode.latest[flight.name] is flight)

    def _complete_messages(self, group: LockGroup, pending: PendingUpdate, *, last: bool) -> list[InFlight]:
        """Return the messages whose gradient is complete, now that the group has run backward."""
        for flight in pending.read:
            flight.missing -= 1
        read = list(dict.fromkeys(pending.read))
        if not last:
            return [flight for flight in read if not flight.missing]
        # What was to be read later will not be: what has come back by now is all.
        latest = self._episode.latest
        edges = [e.name for node in group.nodes for e in self._wiring.incoming[node.name]]
        unread = [latest[n] for n in edges if n in latest and latest[n].missing and latest[n] not in read]
        return [*read, *unread]

    def _update(self, node: Node) -> None:
        """Step a node's optimizer, if there is anything to learn."""
        optimizers = self._optimizers[node.name]
        if not has_gradient(optimizers):
            return
        step_optimizers(optimizers)
        self._exchange.count_updates(self._rules_by_node[node.name])
        self._record.updated.append(node.name)
        self._instruments.log("update", node.name, self._step)

    def _check_used(self) -> None:
        """Refuse a gradient that is left over: it has reached a node that is not learning, or has no optimizer.

        Raises:
            CutError: if a node's loss depends on a parameter of another node by another way than its edges.
            ConfigError: if the parameter was thawed after the engine had been made.
        """
        for name, node in self._wiring.nodes.items():
            trained = {id(p) for o in self._optimizers[name] for g in o.param_groups for p in g["params"]}
            for path, p in node.module.named_parameters():
                if p.grad is not None:
                    p.grad = None
                    raise (
                        stray_gradient_error(path, name)
                        if id(p) in trained
                        else thawed_error(f"{name}.{path}")
                    )

    # -- the rest -------------------------------------------------------------------------------------

    @property
    def can_save(self) -> bool:
        """Is no graph held now, so that `state_dict` is exact? So it is at a multiple of `interval` steps."""
        return self._episode.clock % self.interval == 0

    def state_dict(self, *, strict: bool = True) -> dict[str, Any]:
        """Return what a resumed run needs beside ``net.state_dict()``: optimizers, clocks, states, messages under way.

        Args:
            exact: refuse where graphs are held, which cannot be saved. False to save all the same: the unrolls under
                way then go on after a resume as if they had begun there, and the run becomes another one.

        Raises:
            ConfigError: if it is to be exact and graphs are held; see `can_save`.
        """
        if strict and not self.can_save:
            raise ConfigError(
                f"step {self._episode.clock} of the episode lies inside an unroll, whose graph cannot be saved; save at a "
                f"multiple of {self.interval} steps (can_save), or with state_dict(strict=False), which loses it"
            )
        return {
            "optimizers": [o.state_dict() for o in self.optimizers],
            "step": self._step,
            "episode": self._episode.state_dict(),
        }

    @explain_load_errors
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up the state that `state_dict` returned, in an engine built in the same way."""
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.reset()
        self._step = int(state["step"])
        self._episode.load_state_dict(state["episode"])

    def _rules_updated_with(self, node: Node) -> list[str]:
        """Return the rules that learn with a node: those that speak for it, and those that need nothing from above."""
        wiring, rule = self._wiring, self.net.rule
        names = [e.name for e in wiring.incoming[node.name] if rule(e.name).listens]
        names += [e.name for e in wiring.outgoing[node.name] if not rule(e.name).listens]
        return [*names, *([node.state_name] if node.state_rule is not None else [])]
