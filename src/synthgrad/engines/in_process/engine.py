"""The in-process engine: every module updates as soon as its own forward is done (DNI §2.1).

What happens at the cuts, and in which order, stands in ``cuts.py``. The user's own forward runs unchanged.
So at any time the graph of one module is held, whatever the depth. Two things differ where they are asked for:

- A rule may have the module below *wait* (`Credit.wait`): its turn is kept until the message has come, at once as
  in backpropagation, or some steps later where messages lag, which is training with delayed gradients.
- An interface with *synthetic inputs* feeds the module above with what its input rule supplies, for the same batch
  or for a newer one, which the module below has not seen yet.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from ...core import ConfigError, Decoupled, Guard, Info, Monitor, Timeline
from ...core.devices import cuda_devices
from ...core.graph import first_tensor
from ...core.in_flight import Batch
from ...core.instruments import Instruments
from ..base import Criterion, StepRecord, explain_load_errors, forward_args, restore_buffers_after_skips
from ..carry import carried_states, set_carried_states
from ..checks import check_criterion, check_draws, check_first_batch, check_unlockable, warn_of_evaluation
from ..optimizers import (
    OptimizerFactory,
    clear_autocast_cache,
    make_optimizers,
    parameters_by_role,
    zero_grad,
)
from ..penalty import Penalties, Penalty
from ..replay import ForwardReplay, WeightStash
from .cuts import CutHandler, StopForward
from .lags import Lag
from .mailboxes import Mailboxes

__all__ = ["InProcess"]


class InProcess:
    """Trains a decoupled network without locks, in one process.

    Args:
        net: what `decouple` returned; put it into training mode.
        criterion: takes output and target, returns a scalar loss, reduced as ``net.units`` says; or the
            loss of each example, ``(B,)``, which rules that predict loss values learn from.
        optimizer: takes parameters, returns an optimizer, or several as a list; called once for each module, with the
            parameters of the module, of the rules at the interfaces that feed it (they speak for it), and,
            at its own end, of rules that learn from their own loss alone and of input rules. The list of parameters
            knows their names too, see `Parameters`.
        rule_options: options for the rules' parameter groups, such as ``{"lr": 1e-3}``.
        input_options: the same for the input rules.
        update_prob: each module, with the rules that speak for it, updates with this probability in a
            step; else it only passes activations on (DNI §3.1, sparse updates).
        generator: source of the draws for ``update_prob``; on the CPU.
        lags: steps that messages take to cross each interface, `Lag` by name; 0 where not named.
        penalty: what is added to the loss that is no function of the output, such as a weight penalty: takes the
            parameters of a module, returns a scalar. Or one for some modules, by name: a balancing loss, say, which
            that module has left in an attribute in this step.
        monitor: measures the quality of credits; None to measure nothing.
        guard: stop with `DivergedError` at an activation, credit, message, gradient or loss that is not finite, before
            anything learns from it. Or ``Guard(skip=True)``: leave it out, count it, and go on.
        timeline: is filled with what happens, in order; None to keep nothing.

    Attributes:
        optimizers: those of each module with something to train, in the order of the forward pass.

    Raises:
        ConfigError: if a setting is out of range, or the network cannot be trained without locks
            (a parameter that two modules share, or that checkpointing hides; a rule whose error flows
            into ``h``; a loss scale); if an optimizer needs a closure, or not every parameter.
    """

    def __init__(
        self,
        net: Decoupled,
        criterion: Criterion,
        optimizer: OptimizerFactory,
        *,
        rule_options: Mapping[str, Any] | None = None,
        input_options: Mapping[str, Any] | None = None,
        update_prob: float = 1.0,
        generator: torch.Generator | None = None,
        lags: Mapping[str, Lag] | None = None,
        penalty: Penalty | None = None,
        monitor: Monitor | None = None,
        guard: bool | Guard = True,
        timeline: Timeline | None = None,
    ) -> None:
        if not isinstance(net, Decoupled):
            raise ConfigError(f"got a {type(net).__name__}, expected what synthgrad.decouple returned")
        check_criterion(criterion)
        check_draws(update_prob, generator)
        self.net = net
        self.update_prob = update_prob
        self._generator = generator
        self._instruments = Instruments(Guard.of(guard), monitor, timeline)
        check_unlockable(net)
        self._mailboxes = Mailboxes(net, lags or {})
        # A graph that outlives its step must not see the updates in between.
        self._stashes = any(i.rule.waits and self._mailboxes.is_late(n) for n, i in net.interfaces.items())
        self._optimizers = [
            make_optimizers(
                optimizer,
                m.name,
                *zip(parameters_by_role(net, m, k), (None, rule_options, input_options), strict=True),
            )
            for k, m in enumerate(net.graph.modules)
        ]
        self._cuts = CutHandler(
            net,
            criterion,
            self._optimizers,
            self._mailboxes,
            Penalties(net, penalty),
            self._instruments,
            sparse=update_prob < 1,
        )
        self._step = 0

    @property
    def monitor(self) -> Monitor | None:
        """Measures the quality of credits; None to measure nothing."""
        return self._instruments.monitor

    @monitor.setter
    def monitor(self, monitor: Monitor | None) -> None:
        self._instruments.monitor = monitor

    @property
    def optimizers(self) -> list[Optimizer]:
        """The optimizers of the modules, in the order of the forward pass."""
        return [o for own in self._optimizers for o in own]

    def step(
        self,
        x: Any = None,
        y: Any = None,
        *,
        context: Tensor | None = None,
        ids: Tensor | None = None,
        **inputs: Any,
    ) -> StepRecord:
        """Run one step: when it returns, every module that drew an update has made it.

        Args:
            x: input, ``(B, ...)``; a tuple of the model's positional arguments; or a mapping of its keyword arguments.
            y: target, as the criterion wants it.
            context: of the rules, ``(B, ...)``; ``y`` itself where it is a tensor and nothing is given.
            ids: ``(B,)`` int64, which examples these are.
            inputs: further keyword arguments of the model, such as ``attention_mask=…``.

        Raises:
            DivergedError: if a message or the loss is not finite; names interface and step.
            CutError: if this batch runs through the network in another way than the example did (a cut is left out or
                run twice, a skip connection appears), or the criterion has a term beyond the output.
            ConfigError: if a parameter has been thawed that is in no optimizer.
        """
        passed = forward_args(x, inputs)
        c = y if context is None and isinstance(y, Tensor) else context
        info = Info(c, ids, self._step, first_tensor(*passed))
        record = StepRecord(self._step)
        entering = self._mailboxes.enter(passed, Batch(info, y, self._step))
        if entering is None:  # a module that is ahead needs newer batches than have come
            self._step += 1
            return record
        (args, kwargs), batch = entering
        if not self._step:
            warn_of_evaluation(self.net)
            check_first_batch(self.net, (args, kwargs))
        clear_autocast_cache()
        grad_mode, cuts = torch.is_grad_enabled(), self._cuts
        try:
            replay = self._make_replay(args, kwargs) if self._stashes else None
            keeping = nullcontext() if replay is None else replay.stash.saved_tensors_hooks()
            sparing = restore_buffers_after_skips(self.net, self._instruments)
            with self.net.crossed_by(cuts.cross), keeping, sparing:
                cuts.begin(batch, record, self._draw(), replay)
                output = self.net.model(*args, **kwargs)
                self.net.check_crossed()
                record.loss = cuts.at_output(output)
            cuts.check()
        except StopForward:
            cuts.check()
        except BaseException:
            for optimizer in self.optimizers:
                zero_grad(optimizer)  # what this step has begun must not leak into the next
            raise
        finally:
            torch.set_grad_enabled(grad_mode)
            cuts.end()
        self._step += 1
        return record

    def flush(self) -> None:
        """Read what the guard has queued on an accelerator.

        Raises:
            DivergedError: if a message or loss was not finite.
        """
        self._instruments.flush()

    def begin_at(self, step: int) -> None:
        """Count steps from here, before the first; see `stages.Assembled`."""
        self._step = step

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs beside ``net.state_dict()``: optimizers, draws, messages under way."""
        return {
            "optimizers": [o.state_dict() for o in self.optimizers],
            "step": self._step,
            "generator": None if self._generator is None else self._generator.get_state(),
            "carried": carried_states(self.net.model),
            **self._mailboxes.state_dict(),
        }

    @explain_load_errors
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up the state that `state_dict` returned, in an engine built in the same way."""
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self._step = int(state["step"])
        if self._generator is not None and state["generator"] is not None:
            self._generator.set_state(state["generator"])
        set_carried_states(self.net.model, state["carried"])
        self._mailboxes.load_state_dict(state, self._cuts.rebuild, self._cuts.update_if_ready)

    def _make_replay(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> ForwardReplay:
        """Note what the forward pass is made of: a graph that outlives its step must not see the updates in between."""
        replay = ForwardReplay(
            (args, kwargs),
            WeightStash(self.net.model),
            carried_states(self.net.model),
            cuda_devices(self.net),
        )
        replay.save_random_state()
        return replay

    def _draw(self) -> list[bool]:
        n = len(self._optimizers)
        if self.update_prob == 1:
            return [True] * n
        return (torch.rand(n, generator=self._generator) < self.update_prob).tolist()
