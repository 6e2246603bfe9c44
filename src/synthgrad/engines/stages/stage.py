"""A step of one process: its module learns at once, and its rule when an answer arrives.

::

    activation from below
        │ 1. forward
        ├────────────► 2. send the activation to the stage above, without waiting
        │ 3. the rule's credit, backward
        ├────────────► 4. send the message for the batch down, if it was drawn
        │ 5. receive the answers from above, up to `window` steps late: the rule observes
        ▼
    one optimizer step (by the caller)

This is the step of the in-process engine for one module, with ``Lag(observe=w)`` at its end if the answer of
step ``t − w`` is received in step ``t``. If a rule's credit says that the module is to wait, the module keeps
its graph until the answer arrives.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...core import ConfigError, Info, Message, Rule, ShapeError, StageError
from ...core.devices import cuda_devices
from ...core.graph import first_tensor
from ...core.in_flight import Batch, InFlight
from ...core.instruments import Instruments
from ...core.outputs import output_of
from ...core.port import Port, run_backward
from ...core.tokens import explained
from ...core.units import Units
from ..base import Criterion, ForwardArgs, check_loss, reduce_loss
from ..carry import carried_states, set_carried_states
from ..parts import Part
from ..replay import ForwardReplay, WeightStash, replaying
from ..updates import Updates
from .checksum import batch_checksum, check_same_examples
from .elastic_links import ElasticAbove, ElasticBelow
from .late import LateInput
from .links import AboveLink, Answer, BelowLink
from .pending import PendingBatch, holds_answers
from .rows import chosen_rows
from .window import Window
from .wire import ParcelKind

__all__ = ["Stage", "StageOutput"]


@dataclass(frozen=True, slots=True)
class StageOutput:
    """The result of a step.

    Attributes:
        loss: a scalar, detached; None except in the last stage.
        output: the output of the network, detached; None except in the last stage.
    """

    loss: Tensor | None = None
    output: Any = None


class Stage:
    """A module with the rule at its end, and the links to its neighbours.

    Args:
        part: the part of this stage; its module may be wrapped (data parallel).
        units: how the criterion reduces.
        criterion: the criterion of the last stage; None for others.
        rule: the rule at the end of the stage; None for the last stage.
        below, above: the links; None if there is no neighbour.
        window: the window for answers from above.
        deterministic: whether to receive the answer of step ``t − window`` in step ``t``, and not earlier.
        instruments: the guard, monitor and timeline.
        name: the name of the module, for errors.
        sends_target: whether targets are sent along with the activations.
        late: feeds this stage if its input is late; None to wait for the input.
        copies: whether the module changes its input in place, and gets a copy.
        penalty: returns a term that is added to what the module learns from, a scalar with its graph; None
            for no penalty.
        updates: makes the updates of the module and the rule, as its module 0. Needed if the module waits over steps, or
            is corrected. None if the caller steps the optimizers.
        apart: whether a step may have two updates: from a batch that learns at once, and from one that has waited for its
            answer.
        observe_rows: the share of a batch's rows for which messages are sent.
        seed: of the choice of rows; equal in all processes.

    Attributes:
        learned_from: the step of the batch that the module has learned from last.
        had_turn: whether the module has had the turn of the present step, and need not be updated by the caller.
        updated: whether it has made an update in that turn.
    """

    def __init__(
        self,
        part: Part,
        units: Units,
        criterion: Criterion | None,
        rule: Rule | None,
        *,
        below: BelowLink | ElasticBelow | None,
        above: AboveLink | ElasticAbove | None,
        window: Window,
        deterministic: bool,
        instruments: Instruments,
        name: str,
        sends_target: bool = False,
        late: LateInput | None = None,
        copies: bool = False,
        penalty: Callable[[], Tensor | None] | None = None,
        updates: Updates | None = None,
        apart: bool = True,
        observe_rows: float = 1.0,
        seed: int = 0,
    ) -> None:
        self.part = part
        self.rule = rule
        self.below = below
        self.above = above
        self.window = window
        self._units = units
        self._criterion = criterion
        self._exact = deterministic
        self._instruments = instruments
        self._port = None if rule is None else Port(rule, units, instruments)
        self._name = name
        self._sends_target = sends_target
        self.late = late
        self._copies = copies
        self._penalty = penalty
        self._updates = updates
        self._apart = apart
        self._observe_rows = observe_rows
        self._seed = seed
        self._stash: WeightStash | None = None
        self._made: int | None = None  # the updates that the module had made by then
        # Answers that must wait for the answer of an earlier batch: gradient, losses, and output error if a rule needs it.
        self._ready: dict[int, tuple[Tensor | None, ...]] = {}
        self._flights: dict[int, InFlight] = {}  # batches without an answer so far
        self.learned_from = 0
        self.had_turn = self.updated = False
        self._corrects = rule is not None and rule.corrects
        at_once = deterministic and window.size == 0
        self._stashes = self._corrects or (rule is not None and rule.waits and not at_once)
        if isinstance(above, ElasticAbove):
            above.on_loss = self._give_up
        if isinstance(below, ElasticBelow):
            below.on_loss = self._forget_answers

    def run(
        self,
        step: int,
        passed: ForwardArgs | None,
        target: Any,
        context: Tensor | None = None,
        ids: Tensor | None = None,
    ) -> StageOutput:
        """Run one step except for the optimizer.

        Args:
            step: the number of the step.
            passed: positional and keyword arguments of the network; None if this process was given none. The
                first stage needs them.
            target: the target, as the criterion expects it; a target that comes with the activation has
                precedence.
            context: the context of the rules; by default the target, if it is a tensor.
            ids: ``(B,)`` int64, the ids of the examples.

        Raises:
            DataError: if the activation belongs to other examples than this process was given.
            ConfigError, ContextError, ShapeError: if ids, labels or their shapes do not fit, or no label counts.
        """
        self._instruments.step = self.learned_from = step
        self.had_turn = self.updated = False
        h, came, wanted = None, None, False
        own = batch_checksum(ids, target if target is not None else context)
        inputs = [] if passed is None else self._inputs(passed)
        checksum = own
        if self.below is not None and self.late is None:
            arrived = self.below.receive(ParcelKind.BATCH, step)
            check_same_examples(step, arrived.checksum, own, self._name)
            h, came, checksum = arrived.h, arrived.target, own or arrived.checksum
            inputs = inputs or arrived.inputs
        target = target if came is None else came
        c = target if context is None and isinstance(target, Tensor) else context
        first = None if passed is None else first_tensor(*passed)
        # Rules see the network's input, and must not add to its gradient.
        info = Info(c, ids, step, None if first is None else first.detach())
        if self.late is not None:
            h = self.late.feed(step, info, own)
        self._check_rows(first if h is None else h, c)
        shares = self._shares_of({} if passed is None else passed[1], c, target)
        if self.below is not None:
            assert h is not None
            wanted = self.below.draw()
            h = h.requires_grad_(wanted)  # a leaf, whose gradient is the message for the stage below
        leaf = h if wanted else None
        fed = h.clone() if h is not None and self._copies else h
        replay = None
        if self._stashes:
            module = self.part.module
            replay = ForwardReplay.of_now(inputs, module, cuda_devices(module), self._present_weights(module))
        keeping = nullcontext() if replay is None else replay.stash.saved_tensors_hooks()
        with keeping, explained(self.part.module):
            out = self.part(fed, inputs)
            penalty = None if self._penalty is None else self._penalty()
        self._instruments.log("forward", self._name, step)
        batch = Batch(info, target, step, shares)
        if self.above is None or self._port is None:
            return StageOutput(
                self._at_output(batch, out, leaf, penalty),
                out.detach() if isinstance(out, Tensor) else out,
            )
        self.above.send(
            ParcelKind.BATCH,
            step,
            out.detach(),  # only the values are sent; the stage above starts a graph of its own
            target if self._sends_target else None,
            self.window.size,
            inputs=inputs if self.part.inputs is not None else (),
            checksum=checksum,
        )
        # The target is not needed any more, and is kept out of what is in flight.
        kept = Batch(info, entered=step, shares=shares)
        self._cross(self._port, kept, PendingBatch(self, kept, out, h, leaf, penalty, replay))
        self._receive_answers(self._port, step)
        return StageOutput()

    def predict(self, step: int, passed: ForwardArgs | None) -> Any:
        """Run forward only; return the network's output in the last stage.

        In evaluation mode, without gradients.

        Args:
            step: the number that all stages give this pass.
            passed: the arguments of the network; only the first stage reads them.
        """
        h, inputs = None, [] if passed is None else self._inputs(passed)
        if self.below is not None:
            self.catch_up()
            arrived = self.below.receive(ParcelKind.PREDICT, step)
            h, inputs = arrived.h, inputs or arrived.inputs
        out = self.part(h.clone() if h is not None and self._copies else h, inputs)
        if self.above is None:
            return out
        self.above.send(
            ParcelKind.PREDICT, step, out, None, inputs=inputs if self.part.inputs is not None else ()
        )
        return None

    def _inputs(self, passed: ForwardArgs) -> list[Tensor]:
        """Return the network's input tensors as the part takes them."""
        if self.part.inputs is not None:
            return self.part.inputs.tensors(passed)
        first = first_tensor(*passed)
        if self.below is None and (first is None or len(passed[0]) + len(passed[1]) != 1):
            raise ShapeError(
                f"stage '{self._name}' was given {len(passed[0])} positional arguments and the keywords "
                f"{sorted(passed[1]) or 'none'}, expected one tensor, as an nn.Sequential takes it"
            )
        return [] if first is None else [first]

    def _give_up(self) -> int:
        """Give up the batches whose answers will not come, and return how many they are."""
        flights, self._flights = self._flights, {}
        for flight in flights.values():
            if holds_answers(flight):
                self.answer(flight.batch, None, None)  # the stage below need not wait for it
        return len(flights)

    def _forget_answers(self) -> None:
        """Forget what the stage below will not ask for any more."""
        self._ready.clear()
        if self.late is not None:
            self.late.give_up()

    def catch_up(self) -> None:
        """Wait for activations that were late, so that they do not precede what comes next."""
        if self.late is not None:
            self.late.catch_up()

    def state_dict(self) -> dict[str, Any]:
        """Return the batches without an answer so far, as plain containers of tensors."""
        flights = [
            {
                **f.state_dict(),
                "waits": f.release.state_dict() if isinstance(f.release, PendingBatch) else None,
            }
            for f in self._flights.values()
        ]
        ready = dict(self._ready)
        if isinstance(self.above, ElasticAbove) or isinstance(self.below, ElasticBelow):
            flights, ready = [], {}  # who takes the place of this process, will get no answers to them
        return {
            "flights": flights,
            "ready": ready,
            "carried": carried_states(self.part.module),
            "late": None if self.late is None else self.late.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load the state that `state_dict` returned, before the first step.

        Graphs of batches that wait are rebuilt.
        """
        self._flights.clear()
        for saved in state["flights"]:
            flight = InFlight.from_state(saved)
            step = flight.batch.entered
            self._flights[step] = flight
            if saved["waits"] is not None:
                flight.release = self._built_again(flight.batch, saved["waits"])
        set_carried_states(self.part.module, state["carried"])
        self._ready = {step: tuple(answer) for step, answer in state["ready"].items()}
        if self.late is not None:
            self.late.load_state_dict(state["late"])

    def _built_again(self, batch: Batch, state: Mapping[str, Any]) -> PendingBatch:
        h = state["h"]
        if h is not None:
            h = h.clone().requires_grad_(state["wanted"])
            h.grad = state.get("part")  # of a credit that has still to be corrected
        module = self.part.module
        with replaying(module, state["held"], cuda_devices(module)) as replay:
            out = self.part(h.clone() if h is not None and self._copies else h, replay.passed)
            penalty = None if self._penalty is None else self._penalty()
        leaf = h if state["wanted"] else None
        has_sent = bool(state.get("has_sent"))
        return PendingBatch(self, batch, out, h, leaf, penalty, replay, has_sent)

    # -- parts of a step ----------------------------------------------------------------------------

    def _check_rows(self, x: Any, context: Tensor | None) -> None:
        if isinstance(x, Tensor) and context is not None and len(x) != len(context):
            raise ShapeError(
                f"a batch of {len(x)} examples came to stage '{self._name}', which was given {len(context)} labels: "
                "all processes must go through the data in the same order; or let labels travel with the batch"
            )

    def _shares_of(self, given: Mapping[str, Any], context: Tensor | None, target: Any) -> Tensor | None:
        """Return the share of each example in the criterion, ``(B,)``, which all stages must find alike."""
        if self._units.counts_tokens and given.get("num_items_in_batch") is not None:
            raise ConfigError(
                f"stage '{self._name}' was given num_items_in_batch, of which other stages need not know, and the network was "
                f"decoupled with reduction={self._units.reduction!r}; leave it out, so that every stage counts the labels of "
                "its batch"
            )
        return self._units.shares_of(given, context, target)

    def _cross(self, port: Port, batch: Batch, made: PendingBatch) -> None:
        """Learn from the rule's credit, or keep the graph until the answer arrives."""
        step = batch.entered
        flight = self._flights[step] = port.ask(made.out, batch, step)
        credit = flight.credit
        assert credit is not None
        if credit.wait and flight.finite:
            flight.release = made
            if credit.sends is not None:
                self._send_ahead(made, port.units_of(batch).to_criterion(credit.sends), credit.value)
            return
        corrected = self._corrects and credit.delta is not None and not credit.final and flight.finite
        if flight.finite:
            self.backward(step, made.out, port.learned_from(flight), made.penalty, keeps=corrected)
        if corrected:
            flight.release = made
            flight.made = 0 if self._updates is None else self._updates.made[0]
        else:
            self.answer(batch, made.leaf, credit.value)

    def _send_ahead(self, made: PendingBatch, gradient: Tensor, values: Tensor | None) -> None:
        """Answer a batch at once, by what a gradient of the module's output says of its input; the module waits for its own."""
        made.has_sent = True
        if made.leaf is not None:
            made.pulled_back(gradient, (), keeps=True)
        self.answer(made.batch, made.leaf, values)
        if made.leaf is not None:
            made.leaf.grad = None  # what has been sent must not change when the module learns

    def _chosen_rows(self, num_rows: int, step: int) -> Tensor | None:
        return chosen_rows(self._observe_rows, num_rows, step, self._seed)

    def _present_weights(self, module: nn.Module) -> WeightStash:
        """Return a copy of the weights, which batches share between which there was no update."""
        made = None if self._updates is None else self._updates.made_by(0)
        # Updates are counted, because fused optimizers do not tell that they have changed a tensor.
        self._stash = WeightStash(module, like=self._stash if made == self._made else None)
        self._made = made
        return self._stash

    def _receive_answers(self, port: Port, step: int) -> None:
        """Learn from the answers that have come, all of them as one sample."""
        assert self.above is not None
        answers = self.above.receive_answers(
            step - self.window.size, step, deterministic=self._exact, on_step_time=self.window.record_above
        )
        listening = [a for a in answers if a.gradient is not None]
        if self._corrects:
            assert self._updates is not None
            # As in InProcess, the present batch updates the module first; corrections are for the next update.
            self.had_turn, self.updated = True, self._updates.turn(0, step)
        waited = (
            []
            if self._corrects
            else [a.step for a in answers if a.step in self._flights and self._flights[a.step].waits]
        )
        own, updates = self._flights.get(step), self._updates
        at_once = own is not None and not own.waits
        sums = updates if updates is not None and updates.accumulates else None
        if waited and at_once and updates is not None:
            # As in InProcess, the present batch updates the module before the one that has waited, or is counted apart.
            if sums is not None:
                sums.take(0, step)
            elif self._apart and updates.add_apart(0):
                self._instruments.log("update", self._name, step)
        for answer in answers:
            self._observe(port, answer, step, len(listening))
            if sums is not None and answer.step in waited:
                sums.take(0, answer.step)
        if waited and (self._apart or not at_once):
            self.learned_from = waited[0]
        current = self._flights.get(step)
        if current is not None:
            current.settle()  # the rule's parameters will have changed when the answer arrives

    def _observe(self, port: Port, answer: Answer, step: int, share: int) -> None:
        flight = self._flights.pop(answer.step, None)
        if flight is None:
            raise StageError(
                f"stage '{self._name}': a message for batch {answer.step} has come, which is answered already or "
                "was never sent; do all processes run the same program?"
            )
        if answer.gradient is not None:
            rows = self._chosen_rows(len(flight.h), answer.step)
            flight = flight if rows is None else flight.of_rows(rows)
            message = Message(answer.gradient, answer.loss, answer.output_error)
            port.receive(flight, message)
            if self._corrects and self._updates is not None:
                message.age = self._updates.made[0] - flight.made
                message.age_s = time.monotonic() - flight.crossed_at
            port.observe(flight, step, share)
            if self._corrects:
                self._correct(port, flight)
            else:
                port.release(flight)
        elif self._corrects:
            self._correct(port, flight)  # no message came
        elif holds_answers(flight):
            self.answer(flight.batch, None, answer.loss)  # it has waited, and no message came

    def _correct(self, port: Port, flight: InFlight) -> None:
        """Correct the credit that the module has learned from, now that the message has come, and answer the batch."""
        pending, flight.release = flight.release, None
        if pending is None:
            return  # its credit was final, or not finite: it has been answered
        assert isinstance(pending, PendingBatch)
        assert self._updates is not None
        message = flight.message
        if message is not None and flight.finite:
            assert flight.credit is not None
            assert flight.credit.delta is not None
            difference, factor = port.rule.correction(flight.credit.delta, message, flight.info)
            made = port.units_of(flight.batch).to_criterion(difference)
            grads = pending.pulled_back(made, list(self.part.module.parameters()))
            own = [None if g is None else g * factor for g in grads]
            smallest = min((g for g in own if g is not None), key=Tensor.numel, default=None)
            if smallest is None or self._instruments.check(self._name, smallest, "gradient"):
                self._updates.correct(0, own)
        loss, error = (None, None) if message is None else (message.loss, message.output_error)
        self.answer(flight.batch, pending.leaf, loss, error)

    def backward(
        self, step: int, out: Tensor, delta: Tensor | None, penalty: Tensor | None, *, keeps: bool = False
    ) -> None:
        """Run the module's backward pass from its credit, or from the loss; keep the graph if a correction will need it."""
        ones = None if penalty is None else torch.ones_like(penalty)
        if run_backward(
            [out] if penalty is None else [out, penalty],
            [delta] if penalty is None else [delta, ones],
            retain_graph=keeps,
        ):
            self._instruments.log("backward", self._name, step)

    def _at_output(self, batch: Batch, out: Any, leaf: Tensor | None, penalty: Tensor | None) -> Tensor:
        assert self._criterion is not None
        units = self._units.with_shares(batch.shares)
        with explained():
            loss, values = reduce_loss(self._criterion(out, batch.target), units)
        network_output = None
        if self.below is not None and self.below.sends_output_error and leaf is not None:
            network_output = output_of(out)
            network_output.retain_grad()
        if check_loss(self._instruments, loss.detach(), batch.target, units):
            self.backward(batch.entered, loss, torch.ones_like(loss), penalty)
        error = None
        if network_output is not None and network_output.grad is not None:
            error = units.to_example(network_output.grad, like=leaf)
        self.answer(batch, leaf, values, error)
        return loss.detach()

    def answer(
        self, batch: Batch, leaf: Tensor | None, values: Tensor | None, output_error: Tensor | None = None
    ) -> None:
        """Answer a batch of the stage below. Answers are sent in the order of the batches.

        A batch that does not wait can be ready before an earlier one that still waits; its answer is then
        held back.
        """
        if self.below is None:
            return
        gradient = None
        if leaf is not None and leaf.grad is not None:
            gradient = self._units.with_shares(batch.shares).to_example_(leaf.grad)
            rows = self._chosen_rows(len(gradient), batch.entered)
            if rows is not None:
                gradient, values, output_error = (
                    None if t is None else t[rows.to(t.device)] for t in (gradient, values, output_error)
                )
        self._ready[batch.entered] = (
            (gradient, values) if output_error is None else (gradient, values, output_error)
        )
        while self._ready:
            first = min(self._ready)
            if any(k < first and holds_answers(flight) for k, flight in self._flights.items()):
                break
            self.below.answer(first, *self._ready.pop(first), busy_s=self.window.busy_s)
