"""The plain training loop as an engine: forward, backward and update, everything locked."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..core import ConfigError, Decoupled, Guard, Timeline, context
from ..core.devices import cuda_devices
from ..core.given import check_whole
from ..core.instruments import Instruments
from ..core.interface import Interface
from ..core.tokens import explained
from ..core.units import Units
from .base import (
    Criterion,
    StepRecord,
    check_loss,
    explain_load_errors,
    forward_args,
    reduce_loss,
    restore_buffers_after_skips,
)
from .carry import carried_states, set_carried_states
from .checks import check_criterion, check_draws, check_first_batch
from .optimizers import OptimizerFactory, Parameters, clear_autocast_cache, make_optimizers, zero_grad
from .penalty import Penalties, Penalty
from .watch import check_gradients_have_optimizers

__all__ = ["Locked", "true_messages"]


class Locked:
    """Trains a plain network by backpropagation, or a decoupled one in the plain loop.

    The modules of a decoupled network learn from the credit of their rules, but in lock step. This is what an
    unchanged training loop does, and the unlocked engines are compared with it.

    Args:
        net: a network, decoupled or not.
        criterion: takes output and target, returns a scalar loss, or the loss of each example, ``(B,)``.
        optimizer: takes parameters, returns an optimizer.
        rule_options: options for the parameter group of the rules, such as ``{"lr": 1e-3}``.
        update_prob: the probability that the whole network, with its rules, updates in a step; otherwise it
            only runs forward (DNI §3.1, sparse updates of the locked network).
        generator: the source of random numbers for ``update_prob``; on the CPU.
        accumulate: ``m``, the number of steps (microbatches) of which an update is made: the mean of their gradients. A
            step that the guard skips adds nothing to it. A criterion that divides by the number of tokens in all
            microbatches needs the sum in place of the mean: multiply it by ``m``.
        true_messages: whether rules learn from the true gradient, which a second pass through the network
            computes. By default they learn from the messages of modules that have themselves learned from a
            rule's credit.
        penalty: a term of the loss that does not depend on the output, as in `InProcess`. For a plain network
            a function of all its parameters.
        guard: whether to stop with `DivergedError` at a loss that is not finite. ``Guard(skip=True)`` skips
            the step, counts it, and continues.
        timeline: records what happens, in order; None to record nothing.

    Raises:
        ConfigError: if ``update_prob`` is not a probability above 0, ``accumulate`` is no whole number from 1 or is
            given together with ``update_prob``, or an optimizer needs a closure or leaves a parameter out.
    """

    def __init__(
        self,
        net: nn.Module,
        criterion: Criterion,
        optimizer: OptimizerFactory,
        *,
        rule_options: Mapping[str, Any] | None = None,
        update_prob: float = 1.0,
        generator: torch.Generator | None = None,
        accumulate: int = 1,
        true_messages: bool = False,
        penalty: Penalty | None = None,
        guard: bool | Guard = True,
        timeline: Timeline | None = None,
    ) -> None:
        check_criterion(criterion)
        check_draws(update_prob, generator)
        check_whole("accumulate", accumulate, 1, "number of microbatches of an update")
        if accumulate > 1 and update_prob < 1:
            raise ConfigError(
                f"accumulate={accumulate} with update_prob={update_prob}: an update is made of all microbatches, or the "
                "network skips some; use one of the two"
            )
        self.net = net
        self.criterion = criterion
        rules = ("rules.", "inputs.") if isinstance(net, Decoupled) else ()
        own = [(n, p) for n, p in net.named_parameters() if not n.startswith(rules)]
        theirs = [(n, p) for n, p in net.named_parameters() if n.startswith("rules.") and rules]
        self.optimizers = make_optimizers(optimizer, "all", (own, None), (theirs, rule_options))
        if isinstance(net, Decoupled):
            self._penalties: Penalties | None = Penalties(net, penalty)
        elif isinstance(penalty, Mapping):
            raise ConfigError(
                "penalty is given by module, and a plain network is one; give a function of its parameters"
            )
        else:
            self._penalties = None
        self._penalty = penalty
        self._parameters = Parameters(own, "all")
        self.update_prob = update_prob
        self.accumulate = accumulate
        self.true_messages = true_messages
        self._generator = generator
        # In a decoupled network the crossing logs what happens at the cuts.
        self._instruments = Instruments(Guard.of(guard), timeline=timeline)
        if isinstance(net, Decoupled):
            net.instruments.timeline = timeline
        self._step = 0
        # The sums of the gradients of an incomplete update, parameter by parameter.
        self._sums: list[Tensor | None] = []

    def step(
        self,
        x: Any = None,
        y: Any = None,
        *,
        context: Tensor | None = None,
        ids: Tensor | None = None,
        **inputs: Any,
    ) -> StepRecord:
        """Run one step on a batch.

        Args:
            x: the input, ``(B, ...)``; a tuple of positional arguments; or a mapping of keyword arguments.
            y: the target, as the criterion expects it.
            context: the context of the rules; by default ``y``, if it is a tensor.
            ids: ``(B,)`` int64, the ids of the examples.
            inputs: further keyword arguments of the model.

        Returns:
            The loss, and ``["all"]`` as the updated modules; an empty list if no update was drawn, or the microbatches
            of an update are incomplete.

        Raises:
            DivergedError: if the loss is not finite.
            ConfigError, ContextError, ShapeError: if ids, labels or their shapes do not fit, or no label of the batch
                counts.
        """
        args, kwargs = forward_args(x, inputs)
        self._instruments.step = self._step
        if not self._step:
            check_first_batch(self.net, (args, kwargs))
        if not self._draw():
            return self._only_forward(args, kwargs, y)
        with restore_buffers_after_skips(self.net, self._instruments), explained(self.net):
            return self._learn(args, kwargs, y, context, ids)

    def _learn(
        self,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        y: Any,
        context: Tensor | None,
        ids: Tensor | None,
    ) -> StepRecord:
        """Run forward, backward and the update."""
        clear_autocast_cache()
        for optimizer in self.optimizers:
            zero_grad(optimizer)
        c = y if context is None and isinstance(y, Tensor) else context
        units = Units()
        if isinstance(self.net, Decoupled):
            net = self.net
            units = net.units.of_batch(kwargs, c, y)
            if self.true_messages:
                net.truths = true_messages(
                    net, lambda: self._loss(net.model(*args, **kwargs), y, units), units
                )
            with _context(c, ids=ids, step=self._step), _target(net, y):
                loss = self._loss(net(*args, **kwargs), y, units)
                self._with_penalty(loss).backward()
        else:
            loss = self._loss(self.net(*args, **kwargs), y, units)
            self._with_penalty(loss).backward()
        fine = check_loss(self._instruments, loss.detach(), units.labels_of(kwargs, c, y), units)
        self._log_backward()
        check_gradients_have_optimizers(self.net.named_parameters(), self.optimizers)
        updates = self._gather(fine=fine)
        for optimizer in self.optimizers if updates else ():
            optimizer.step()
        if updates or not fine:
            self._instruments.log("update" if updates else "skip", "all", self._step)
        self._step += 1
        return StepRecord(self._step - 1, loss.detach(), ["all"] if updates else [])

    @torch.no_grad()
    def _gather(self, *, fine: bool) -> bool:
        """Add the gradients of a microbatch to those of its update; if these are complete, leave their mean.

        Args:
            fine: whether the microbatch is to be learned from.

        Returns:
            Whether there is an update to make.
        """
        if self.accumulate == 1:
            return fine
        parameters = self._trained()
        sums = self._sums or [None] * len(parameters)
        self._sums = [_sum(s, p.grad if fine else None) for s, p in zip(sums, parameters, strict=True)]
        for p in parameters:
            p.grad = None  # it is the sum's now
        if (self._step + 1) % self.accumulate:
            return False
        sums, self._sums = self._sums, []
        for p, total in zip(parameters, sums, strict=True):
            p.grad = None if total is None else total.div_(self.accumulate)
        return any(total is not None for total in sums)

    def _trained(self) -> list[Tensor]:
        return [p for o in self.optimizers for group in o.param_groups for p in group["params"]]

    def _log_backward(self) -> None:
        """Log the backward passes that no cut sees.

        These are the backward passes of modules that send no message, or of a plain network.
        """
        if not isinstance(self.net, Decoupled):
            self._instruments.log("forward", "all", self._step)
            self._instruments.log("backward", "all", self._step)
            return
        for module in self.net.graph.modules:
            if not module.inputs:
                self._instruments.log("backward", module.name, self._step)

    def _with_penalty(self, loss: Tensor) -> Tensor:
        if self._penalties is not None and isinstance(self.net, Decoupled):
            terms = (
                [self._penalties.compute(m.name) for m in self.net.graph.modules] if self._penalties else []
            )
        else:
            terms = [self._penalty(self._parameters)] if callable(self._penalty) else []
        return sum((t for t in terms if t is not None), start=loss)

    def _loss(self, output: Any, y: Any, units: Units) -> Tensor:
        return reduce_loss(self.criterion(output, y), units)[0]

    def _draw(self) -> bool:
        """Draw whether this step updates. If every step does, no random number is used."""
        return self.update_prob == 1 or bool(torch.rand((), generator=self._generator) < self.update_prob)

    def _only_forward(self, args: tuple[Any, ...], kwargs: dict[str, Any], y: Any) -> StepRecord:
        """Run a step without an update: only the forward pass, which updates BatchNorm's statistics."""
        units = Units()
        with torch.no_grad(), explained(self.net):
            if isinstance(self.net, Decoupled):
                units = self.net.units.of_batch(kwargs, y if isinstance(y, Tensor) else None, y)
            loss = self._loss(self.net(*args, **kwargs), y, units)
        check_loss(self._instruments, loss, units.labels_of(kwargs, None, y), units)
        self._instruments.log("forward", "all", self._step)
        self._instruments.log("skip", "all", self._step)
        self._step += 1
        return StepRecord(self._step - 1, loss)

    def flush(self) -> None:
        """Read the checks that the guard has queued. An update whose microbatches are incomplete is not made.

        Raises:
            DivergedError: if a loss was not finite.
        """
        self._instruments.flush()

    def state_dict(self) -> dict[str, Any]:
        """Return the state of optimizers and random draws, the step count, and the gradients of an incomplete update.

        The state of the network is not part of it.
        """
        return {
            "optimizers": [o.state_dict() for o in self.optimizers],
            "step": self._step,
            "generator": None if self._generator is None else self._generator.get_state(),
            "carried": carried_states(self.net),
            "accumulate": self.accumulate,
            "sums": [None if total is None else total.clone() for total in self._sums],
        }

    @explain_load_errors
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load the state that `state_dict` returned.

        Raises:
            ConfigError: if it has the gradients of an incomplete update, and updates are made of another number of steps.
        """
        # States of earlier versions have neither.
        was, sums = state.get("accumulate", 1), list(state.get("sums", ()))
        step = int(state["step"])
        if was != self.accumulate and (sums or step % self.accumulate):
            raise ConfigError(
                f"the state is of step {step} with accumulate={was}, within an update of it or of accumulate="
                f"{self.accumulate}; build the engine with accumulate={was}"
            )
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self._step = step
        places = [p.device for p in self._trained()] if sums else []
        self._sums = [None if s is None else s.to(at) for s, at in zip(sums, places, strict=True)]
        set_carried_states(self.net, state["carried"])
        drawn = state.get("generator")  # states of earlier versions have none
        if self._generator is not None and drawn is not None:
            self._generator.set_state(drawn.cpu())


@contextmanager
def _target(net: Decoupled, y: Any) -> Generator[None]:
    """Let the network know the target of the batch at hand, whose tokens may have to be counted."""
    net.criterion_target = y
    try:
        yield
    finally:
        net.criterion_target = None


def _sum(total: Tensor | None, more: Tensor | None) -> Tensor | None:
    """Return a sum, added to in place; the first summand is kept as it is, detached."""
    if total is None or more is None:
        return total if more is None else more.detach()
    return total.add_(more)


def true_messages(
    net: Decoupled, loss_of: Callable[[], Tensor], units: Units | None = None
) -> dict[str, Tensor]:
    """Return the true gradient at every interface, ``(B, ...)`` in per-example units, by name.

    The network runs once more, forward and backward, as if it had no cuts. Its buffers (BatchNorm's
    statistics) and the state of random numbers (Dropout) are restored, so that the next pass sees the same.

    Args:
        net: a decoupled network in training mode.
        loss_of: runs ``net.model`` on the batch, and returns the loss as the criterion reduces it.
        units: of the batch; None for those of the network, which know no batch.
    """
    kept: dict[str, Tensor] = {}

    def keep(interface: Interface, h: Tensor) -> Tensor:
        kept[interface.name] = h
        return h.clone() if interface.copies else h

    buffers = [(b, b.clone()) for b in net.model.buffers()]
    with torch.random.fork_rng(cuda_devices(net)), net.crossed_by(keep):
        loss = loss_of()
        gradients = torch.autograd.grad(loss, list(kept.values()))
    for buffer, before in buffers:
        buffer.copy_(before)
    unscaled = (net.units if units is None else units).unscaled()
    return {name: unscaled.to_example(g) for name, g in zip(kept, gradients, strict=True)}


_context = context  # `step` has a keyword of the same name
