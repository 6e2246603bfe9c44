"""The plain training loop as an engine: one forward, one backward, one update, everything locked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..core import ConfigError, Decoupled, Guard, Timeline, context
from ..core.instruments import Instruments
from ..core.units import Units
from .base import Criterion, StepRecord, loads_state, model_inputs, reduced
from .buffers import sparing_buffers
from .carry import carried, carry_on
from .checks import check_criterion, check_draws, check_first_batch
from .optimizers import OptimizerFactory, Parameters, clear_casts, make_optimizers, zero_grad
from .penalty import Penalties, Penalty
from .truth import true_messages
from .watch import check_learned

__all__ = ["Locked"]


class Locked:
    """Backpropagation of a plain network, or the plain loop of a decoupled one.

    With a decoupled network the modules learn from their rules' credit, but in lock step: that is what
    an unchanged training loop does, and what the unlocked engines are compared with.

    Args:
        net: a network, decoupled or not.
        criterion: takes output and target, returns a scalar loss, or the loss of each example, ``(B,)``.
        optimizer: takes parameters, returns an optimizer.
        rule_options: options for the parameter group of the rules, such as ``{"lr": 1e-3}``.
        update_prob: the whole network, with its rules, updates with this probability in a step; else it
            only runs forward (DNI §3.1, sparse updates of the locked network).
        generator: source of the draws for ``update_prob``; on the CPU.
        true_messages: rules learn from the true gradient, by a second pass through the network, in place of
            what comes back from a module that itself has learned from a rule's credit.
        penalty: what is added to the loss that is no function of the output; as `InProcess` takes it. For a plain
            network a function of all its parameters.
        guard: stop with `DivergedError` at a loss that is not finite. Or ``Guard(skip=True)``: leave the step out, count it,
            and go on.
        timeline: is filled with what happens, in order; None to keep nothing.

    Raises:
        ConfigError: if ``update_prob`` is no probability over 0, an optimizer needs a closure or leaves a parameter out.
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
        true_messages: bool = False,
        penalty: Penalty | None = None,
        guard: bool | Guard = True,
        timeline: Timeline | None = None,
    ) -> None:
        check_criterion(criterion)
        check_draws(update_prob, generator)
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
        self.true_messages = true_messages
        self._generator = generator
        # Of a decoupled network the crossing logs what happens at the cuts.
        self._instruments = Instruments(Guard.of(guard), timeline=timeline)
        if isinstance(net, Decoupled):
            net.instruments.timeline = timeline
        self._step = 0

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
            x: input, ``(B, ...)``; a tuple of positional arguments; or a mapping of keyword arguments.
            y: target, as the criterion wants it.
            context: of the rules; ``y`` itself where it is a tensor and nothing else is given.
            ids: ``(B,)`` int64, which examples these are.
            inputs: further keyword arguments of the model.

        Returns:
            The loss, and ``["all"]`` as what was updated; nothing if no update was drawn.
        """
        args, kwargs = model_inputs(x, inputs)
        self._instruments.step = self._step
        if not self._step:
            check_first_batch(self.net, (args, kwargs))
        if not self._draw():
            return self._only_forward(args, kwargs, y)
        with sparing_buffers(self.net, self._instruments):
            return self._learn(args, kwargs, y, context, ids)

    def _learn(
        self,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        y: Any,
        context: Tensor | None,
        ids: Tensor | None,
    ) -> StepRecord:
        """Run forward, backward and the update, all locked."""
        clear_casts()
        for optimizer in self.optimizers:
            zero_grad(optimizer)
        if isinstance(self.net, Decoupled):
            c = y if context is None and isinstance(y, Tensor) else context
            net = self.net
            if self.true_messages:
                net.truths = true_messages(net, lambda: self._loss(net.model(*args, **kwargs), y, net.units))
            with _context(c, ids=ids, step=self._step):
                loss = self._loss(net(*args, **kwargs), y, net.units)
                self._with_penalty(loss).backward()
        else:
            loss = self._loss(self.net(*args, **kwargs), y, None)
            self._with_penalty(loss).backward()
        fine = self._instruments.check("loss", loss.detach())
        self._log_backward()
        check_learned(self.net.named_parameters(), self.optimizers)
        for optimizer in self.optimizers if fine else ():
            optimizer.step()
        self._instruments.log("update" if fine else "skip", "all", self._step)
        self._step += 1
        return StepRecord(self._step - 1, loss.detach(), ["all"] if fine else [])

    def _log_backward(self) -> None:
        """Log what no cut has seen: the modules that nothing below sends a message to; a plain network, which is one."""
        if not isinstance(self.net, Decoupled):
            self._instruments.log("forward", "all", self._step)
            self._instruments.log("backward", "all", self._step)
            return
        for module in self.net.graph.modules:
            if not module.inputs:
                self._instruments.log("backward", module.name, self._step)

    def _with_penalty(self, loss: Tensor) -> Tensor:
        if self._penalties is not None and isinstance(self.net, Decoupled):
            terms = [self._penalties.of(m.name) for m in self.net.graph.modules] if self._penalties else []
        else:
            terms = [self._penalty(self._parameters)] if callable(self._penalty) else []
        return sum((t for t in terms if t is not None), start=loss)

    def _loss(self, output: Any, y: Any, units: Units | None) -> Tensor:
        return reduced(self.criterion(output, y), units)[0]

    def _draw(self) -> bool:
        """Is this step one that updates? Nothing is drawn where every step is."""
        return self.update_prob == 1 or bool(torch.rand((), generator=self._generator) < self.update_prob)

    def _only_forward(self, args: tuple[Any, ...], kwargs: dict[str, Any], y: Any) -> StepRecord:
        """Run a step without an update: what is left is the forward pass, and BatchNorm's statistics."""
        with torch.no_grad():
            units = self.net.units if isinstance(self.net, Decoupled) else None
            loss = self._loss(self.net(*args, **kwargs), y, units)
        self._instruments.check("loss", loss)
        self._instruments.log("forward", "all", self._step)
        self._instruments.log("skip", "all", self._step)
        self._step += 1
        return StepRecord(self._step - 1, loss)

    def finish(self) -> None:
        """Read what the guard has queued.

        Raises:
            DivergedError: if a loss was not finite.
        """
        self._instruments.flush()

    def state_dict(self) -> dict[str, Any]:
        """Return the state of optimizers and draws and the step count; the network's own is its own."""
        return {
            "optimizers": [o.state_dict() for o in self.optimizers],
            "step": self._step,
            "generator": None if self._generator is None else self._generator.get_state(),
            "carried": carried(self.net),
        }

    @loads_state
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up the state that `state_dict` returned."""
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self._step = int(state["step"])
        carry_on(self.net, state["carried"])
        drawn = state.get("generator")  # snapshots of earlier versions have none
        if self._generator is not None and drawn is not None:
            self._generator.set_state(drawn.cpu())


_context = context  # `step` has a keyword of the same name
