"""The clocked engine: modules that tick at different rates and do not wait for each other (DNI §3.3).

::

    step      0    1    2    3    4    5    6    7          A: period 1, unroll 4;  B: period 4, unroll 2
    A  tick   ●    ●    ●    ●▲   ●    ●    ●    ●▲         ● tick   ▲ update
                             │1                  │1         1. A sends h; the rule of A->B gives credit for it
    B  tick                  ●                   ●▲         2. A updates, from its own losses and that credit
                             └────────3──────────┘          3. B's backward pass, much later, gives the true gradients
                                                               of both messages that B has read: the rule learns them

With a rule that waits (`TrueGradient`) the edge is not cut: A and B form one lock group, which runs one
backward pass at the least common multiple of their intervals, here every 8 steps. So backpropagation is this
engine with another rule.

If a message is read several times, its gradient is the sum over all reads. The clocks determine when it is
sent how often it will be read. A message that will not be read gets no credit.
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
from ...core.tokens import explained
from ...core.units import Reduction
from ..base import Criterion, StepRecord, check_loss, explain_load_errors, reduce_loss
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
    """What happened in one step; ``loss`` is the sum of the losses, None if there was none.

    Attributes:
        losses: the losses by node, detached, on the device.
        outputs: the outputs of the nodes that have ticked, detached.
    """

    losses: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    outputs: dict[str, Any] = field(default_factory=dict[str, Any])


class Clocked:
    """Trains named networks, each with its own clock, in one process.

    Args:
        nodes: the nodes, in the order in which they run within a step. Their modules are trained in place.
        edges: the interfaces between them.
        losses: the criterion of each node; takes the node's outputs and the target, returns a scalar, or the
            loss of each example ``(B,)``. The losses of an unroll are summed over its ticks.
        optimizer: takes parameters, returns an optimizer. It is called once for each node, with the
            parameters of the node, of the rules at the edges that lead to it, of the rule of its own state,
            and of rules at edges from it that learn from their own loss alone.
        example: the external data of one tick by node, batch first; only its shapes matter.
        rule_options: options for the rules' parameter groups, such as ``{"lr": 1e-3}``.
        reduction: how the criteria reduce: ``"mean"``, ``"sum"``, or a callable that takes a message and
            returns the divisor. Where some examples have no label, let the criterion sum over those that have, and
            divide by the batch size.
        monitor: measures the quality of credits; None to measure nothing.
        guard: whether to stop with `DivergedError` at a message or loss that is not finite.
        timeline: records what happens, in order; None to record nothing.

    Attributes:
        net: the `ClockedNetwork`: all modules and rules.
        interval: the number of steps after which every node has just updated.

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
        self._units.refuse_tokens("here the losses of the ticks of an unroll are summed")
        self._instruments = Instruments(Guard.of(guard, skips=False), monitor, timeline)
        self._exchange = Exchange(self.net, self._units, self._instruments)
        # For each node, the names of the rules that are updated with it.
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
        """The optimizers of the nodes, in the order of the nodes."""
        return [o for own in self._optimizers.values() for o in own]

    def reset(self) -> None:
        """Begin an episode: initial states, no messages, all clocks at 0. The previous episode is dropped.

        If the end of the previous episode is to be learned from, end it with ``step(..., last=True)``, which
        also resets.
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
        """Run one step: each node whose clock says so ticks, and learns if its unroll ends.

        Args:
            inputs: external data by node, batch first; ignored if the node does not tick.
            targets: the targets by node, as the criteria expect them. A node without a target, or with None,
                has no loss.
            context: the context of the rules: one for all, or a mapping by interface.
            ids: ``(B,)`` int64, the ids of the examples.
            last: whether the episode ends: every node learns from what it has, without credit from beyond the
                end.

        Raises:
            ConfigError: if an input or a target names an unknown node, or a target has no criterion or is
                given in a step in which its node does not tick.
            ShapeError: if the batch size, or the shape of a message or a state, changes.
            ContextError: if labels are outside the vocabulary, or none counts.
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
        """Read the checks that the guard has queued on an accelerator.

        Raises:
            DivergedError: if a message or loss was not finite.
        """
        self._instruments.flush()

    # -- a tick ---------------------------------------------------------------------------------------

    def _tick(self, node: Node, step_inputs: StepInputs) -> None:
        """Run a node: it reads messages, updates its state, computes its loss, and sends messages."""
        name, episode, wiring = node.name, self._episode, self._wiring
        pending = episode.pending_of(name)
        pending.begun = True
        read = {e.name: self._read(e, pending) for e in wiring.incoming[name] if e.name in episode.latest}
        assert episode.batch_size is not None
        fed = self.net.feed(node, step_inputs.inputs, read, episode.batch_size)
        with explained(node.module):
            outputs, state = self.net.call(node, fed, episode.states.get(name))
        self._instruments.log("forward", name, self._step)
        episode.set_state(node, state)
        self._record.outputs[name] = detached(outputs)
        target = step_inputs.targets.get(name)
        if target is not None:
            with explained():
                loss, _ = reduce_loss(self.losses[name](outputs, target), self._units)
            check_loss(self._instruments, loss.detach(), target)
            pending.losses.append(loss)
            self._record.losses[name] = loss.detach()
        for edge in wiring.outgoing[name]:
            self._send(edge, message_of(edge, outputs), step_inputs, pending)

    def _read(self, edge: Edge, pending: PendingUpdate) -> Tensor:
        """Return the latest message on an edge to one more reader."""
        flight = self._episode.latest[edge.name]
        if flight.missing:
            pending.read.append(flight)
        return self._exchange.read(flight)

    def _send(self, edge: Edge, h: Tensor, step_inputs: StepInputs, pending: PendingUpdate) -> None:
        """Store a message for its receiver, and ask for credit if it will be read."""
        name, episode = edge.name, self._episode
        expected = (episode.batch_size, *self.net.sites[name].shape[1:])
        if h.shape != expected:
            raise ShapeError(
                f"edge '{name}': got a message of shape {tuple(h.shape)}, expected {expected} as in the example; the "
                "shape of a message must not change"
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
        """Return whether a message is read in the step in which it is sent."""
        receiver = self._wiring.nodes[edge.receiver]
        return not self._wiring.is_delayed(edge) and receiver.ticks(self._episode.clock)

    def _ask(self, name: str, h: Tensor, info: Info, reads: int, pending: PendingUpdate) -> InFlight:
        """Ask the rule at an interface for credit, and store the credit until the sender learns."""
        flight, grad = self._exchange.send(name, h, info, reads)
        if grad is not None:
            pending.credited.append((h, grad, flight))
        return flight

    # -- an update ------------------------------------------------------------------------------------

    def _learn(self, group: LockGroup, step_inputs: StepInputs) -> None:
        """Run the backward pass of a group, let the rules at its inputs learn, and step its optimizers."""
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
        """Ask for credit for the final states of the members.

        Return the states that the next unrolls start from.
        """
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
        """Return whether the credit of a message counts.

        It counts if the message has been read, or will be in this last step of an episode.
        """
        soon = self._is_read_at_once(self._wiring.edges[flight.name])
        return flight.reads > 0 or (soon and self._episode.latest[flight.name] is flight)

    def _complete_messages(self, group: LockGroup, pending: PendingUpdate, *, last: bool) -> list[InFlight]:
        """Return the messages whose gradient is complete after the backward pass of a group."""
        for flight in pending.read:
            flight.missing -= 1
        read = list(dict.fromkeys(pending.read))
        if not last:
            return [flight for flight in read if not flight.missing]
        # The episode ends, so these messages will not be read again, and their gradient is complete.
        latest = self._episode.latest
        edges = [e.name for node in group.nodes for e in self._wiring.incoming[node.name]]
        unread = [latest[n] for n in edges if n in latest and latest[n].missing and latest[n] not in read]
        return [*read, *unread]

    def _update(self, node: Node) -> None:
        """Step a node's optimizers, if there is anything to learn."""
        optimizers = self._optimizers[node.name]
        if not has_gradient(optimizers):
            return
        step_optimizers(optimizers)
        self._exchange.count_updates(self._rules_by_node[node.name])
        self._record.updated.append(node.name)
        self._instruments.log("update", node.name, self._step)

    def _check_used(self) -> None:
        """Refuse a gradient of a node that is not learning, or of a parameter without an optimizer.

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
        """Whether no graph is kept now, so that a resumed run does exactly the same.

        This is so at multiples of `interval` steps.
        """
        return self._episode.clock % self.interval == 0

    def state_dict(self, *, strict: bool = True) -> dict[str, Any]:
        """Return what a resumed run needs besides ``net.state_dict()``.

        Optimizers, clocks, states, and messages in flight.

        Args:
            strict: whether to refuse to save while graphs are kept, since graphs cannot be saved. If False,
                the present unrolls continue after a resume as if they had begun there, and the run gives
                other results.

        Raises:
            ConfigError: if ``strict`` is True and graphs are kept; see `can_save`.
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
        """Load the state that `state_dict` returned into an engine that was built in the same way."""
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.reset()
        self._step = int(state["step"])
        self._episode.load_state_dict(state["episode"])

    def _rules_updated_with(self, node: Node) -> list[str]:
        """Return the names of the rules that are updated with a node.

        These are the rules at its inputs, and those at its outputs that need no messages.
        """
        wiring, rule = self._wiring, self.net.rule
        names = [e.name for e in wiring.incoming[node.name] if rule(e.name).learns_from_messages]
        names += [e.name for e in wiring.outgoing[node.name] if not rule(e.name).learns_from_messages]
        return [*names, *([node.state_name] if node.state_rule is not None else [])]
