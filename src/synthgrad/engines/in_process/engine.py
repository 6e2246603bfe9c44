"""The in-process engine: every module updates as soon as its own forward pass is done (DNI §2.1).

``cuts.py`` says what happens at the cuts, and in which order. The user's own forward runs unchanged. At any
time the engine holds the graph of one module only, however deep the network is. There are two exceptions:

- A rule may make the module below *wait* (`Credit.wait`), or correct its credit later (`Rule.corrects`). Then the module
  keeps its graph until the message arrives: in the same step, as in backpropagation, or some steps later if messages
  lag, as in training with delayed gradients.
- An interface may have *synthetic inputs*. Then its input rule supplies the input of the module above, for
  the same batch or for a newer one, which the module below has not processed yet.
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
from ...core.given import check_whole
from ...core.graph import first_tensor
from ...core.in_flight import Batch
from ...core.instruments import Instruments
from ..base import Criterion, StepRecord, explain_load_errors, forward_args, restore_buffers_after_skips
from ..carry import carried_states, set_carried_states
from ..checks import check_criterion, check_draws, check_first_batch, check_unlockable, warn_of_evaluation
from ..codecs import Codec, check_codecs
from ..codecs.wire import CodecWire
from ..optimizers import (
    OptimizerFactory,
    clear_autocast_cache,
    make_optimizers,
    parameters_by_role,
    zero_grad,
)
from ..penalty import Penalties, Penalty
from ..replay import ForwardReplay, WeightStash
from ..ties import TiedParameters, Ties, check_tied_lag
from ..updates import Updates
from .cuts import CutHandler, StopForward
from .lags import Lag
from .lateness import learning_delays
from .mailboxes import Mailboxes

__all__ = ["InProcess"]


class InProcess:
    """Trains a decoupled network without locks, in one process.

    Args:
        net: the network that `decouple` returned, in training mode.
        criterion: takes output and target, returns a scalar loss, reduced as ``net.units`` says; or the loss
            of each example, ``(B,)``, which rules that predict loss values learn from.
        optimizer: takes parameters, returns an optimizer, or several as a list. It is called once for each
            module, with the parameters of the module, of the rules at the interfaces that feed the module,
            and, at the module's own end, of the rules that learn from their own loss alone and of the input
            rules. The list also knows the names of the parameters, see `Parameters`. `optim.ErrorFeedback` extrapolates
            the updates of modules that learn a step or more late, and no others.
        rule_options: options for the rules' parameter groups, such as ``{"lr": 1e-3}``.
        input_options: the same for the input rules.
        update_prob: the probability that a module, with the rules of its optimizer, updates in a step;
            otherwise it only passes activations on (DNI §3.1, sparse updates).
        generator: the source of random numbers for ``update_prob``; on the CPU.
        lags: the number of steps that messages take to cross an interface, as a `Lag` by the interface's
            name; by default 0.
        accumulate: ``m``, the number of steps (microbatches) of which an update is made: the mean of their gradients.
            Delays then count in updates. A module that learns ``d`` steps late makes its update ``ceil(d / m)`` updates
            late, so with ``m`` at least the number of batches in flight no gradient is more than one update old. The
            microbatches of an update that is not complete are not learned from, at the end of training either.
        versions: the number of versions of the weights, where modules wait over steps. None: a graph goes back through a
            copy of the weights of its forward pass, whatever number of versions that takes (weight stashing, PipeDream).
            2: the same, and it is refused if two versions do not suffice (2BW, Narayanan et al. 2021). 1: no copies; a
            graph goes back through the current weights, and an update is made as soon as its last gradient has come
            (PACI, arXiv 2606.07881). A run with one version that is resumed runs what was in flight forward once more,
            with the weights of the snapshot.
        tied_lag: updates a parameter that several modules use (an embedding that also makes the scores) from the gradients of
            all of them, with an optimizer of its own, at the end of an update: with 0 of that one, as the plain loop
            does, with ``n`` of the one ``n`` updates before, as `Stages` do, whose first and last stage send each other
            these gradients. None to refuse such parameters.
        codec: what is lost on the way at every interface, as if a link were there: activations are encoded and decoded, see
            `codecs`. None for nothing. With ``Lag(observe=w)`` the result is that of `Stages` with the same codecs,
            ``window=w`` and ``deterministic=True``, bit for bit.
        message_codec: the same of messages; None for that of activations.
        penalty: a term of the loss that does not depend on the output, such as a weight penalty: takes the
            parameters of a module, returns a scalar. A mapping gives terms to some modules by name: a
            balancing loss, say, which that module has left in an attribute in this step.
        monitor: measures the quality of credits; None to measure nothing.
        guard: whether to stop with `DivergedError` at an activation, credit, message, gradient or loss that
            is not finite, before anything learns from it. ``Guard(skip=True)`` skips it, counts it, and
            continues.
        timeline: records what happens, in order; None to record nothing.

    Attributes:
        optimizers: the optimizers of all modules with something to train, in the order of the forward pass.

    Raises:
        ConfigError: if a setting is out of range; if the network cannot be trained without locks (two modules
            share a parameter and ``tied_lag`` is not given, checkpointing hides one, a rule's error flows into
            ``h``, or there is a loss scale); if two versions of the weights do not suffice; or if an optimizer needs a closure, or leaves a
            parameter out.
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
        accumulate: int = 1,
        versions: int | None = None,
        tied_lag: int | None = None,
        codec: Codec | None = None,
        message_codec: Codec | None = None,
        penalty: Penalty | None = None,
        monitor: Monitor | None = None,
        guard: bool | Guard = True,
        timeline: Timeline | None = None,
    ) -> None:
        if not isinstance(net, Decoupled):
            raise ConfigError(f"got a {type(net).__name__}, expected what synthgrad.decouple returned")
        check_criterion(criterion)
        check_draws(update_prob, generator)
        check_whole("accumulate", accumulate, 1, "number of microbatches of an update")
        if versions not in (None, 1, 2):
            raise ConfigError(
                f"versions={versions!r}: expected 1 (PACI), 2 (2BW), or None for as many versions of the weights as are in use"
            )
        if accumulate > 1 and update_prob < 1:
            raise ConfigError(
                f"accumulate={accumulate} with update_prob={update_prob}: an update is made of all microbatches, or modules "
                "skip some; use one of the two"
            )
        check_tied_lag(tied_lag)
        if tied_lag is not None and penalty is not None:
            raise ConfigError(
                "tied_lag and penalty were given: the penalty of a tied parameter would count once for each module that uses "
                "it; untie it, or let the optimizer's weight decay do it"
            )
        self._wires = _wires(net, codec, message_codec)
        self.net = net
        self.update_prob = update_prob
        self._generator = generator
        self._instruments = Instruments(Guard.of(guard), monitor, timeline)
        check_unlockable(net, tied=tied_lag is not None)
        self._mailboxes = Mailboxes(net, lags or {})
        delays = learning_delays(net, self._mailboxes.lags)
        # A graph that is used after an update must not see that update, so it saves a copy of the weights. A module may
        # learn late without a lag of its own, because those above do.
        rules = [i.rule for i in net.interfaces.values()]
        self._stashes = any(delays) or any(rule.corrects for rule in rules)
        keeps = any(delays) or any(rule.corrects and not rule.recomputes for rule in rules)
        self._copies = keeps and versions != 1
        tied = TiedParameters.made(net, optimizer, tied_lag, late=any(delays))
        self._ties = Ties(tied, accumulate, tied_lag or 0)
        self._tied_optimizers = tied.optimizers
        names = {t.name for t in tied.tied}
        self._optimizers = [
            make_optimizers(
                optimizer,
                m.name,
                *zip(
                    parameters_by_role(net, m, k, but=names),
                    (None, rule_options, input_options),
                    strict=True,
                ),
                late=delays[k] > 0,
            )
            for k, m in enumerate(net.graph.modules)
        ]
        self._updates = Updates(
            [m.name for m in net.graph.modules],
            [[net.model.get_parameter(n) for n in m.parameters] for m in net.graph.modules],
            self._optimizers,
            delays,
            accumulate,
            versions,
            ties=self._ties if tied.tied else None,
        )
        self._stash: WeightStash | None = None
        self._made: list[int] = []  # the updates that the modules had made by then
        self._cuts = CutHandler(
            net,
            criterion,
            [*self._optimizers, *([tied.optimizers] if tied.optimizers else [])],
            self._mailboxes,
            self._updates,
            Penalties(net, penalty),
            self._instruments,
            sparse=update_prob < 1,
            wires=self._wires,
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
        """The optimizers of the modules, in the order of the forward pass; then those of tied parameters."""
        return [*(o for own in self._optimizers for o in own), *self._tied_optimizers]

    def step(
        self,
        x: Any = None,
        y: Any = None,
        *,
        context: Tensor | None = None,
        ids: Tensor | None = None,
        **inputs: Any,
    ) -> StepRecord:
        """Run one step. When it returns, every module that drew an update has made it.

        Args:
            x: the input, ``(B, ...)``; a tuple of the model's positional arguments; or a mapping of its
                keyword arguments.
            y: the target, as the criterion expects it.
            context: the context of the rules, ``(B, ...)``; by default ``y``, if it is a tensor.
            ids: ``(B,)`` int64, the ids of the examples.
            inputs: further keyword arguments of the model, such as ``attention_mask=…``.

        Raises:
            DivergedError: if a message or the loss is not finite; names interface and step.
            CutError: if this batch runs through the network in another way than the example did (a cut is
                left out or run twice, a skip connection appears), or the criterion has a term that does not
                depend on the output.
            ConfigError: if a parameter has been thawed that is in no optimizer.
        """
        passed = forward_args(x, inputs)
        c = y if context is None and isinstance(y, Tensor) else context
        info = Info(c, ids, self._step, first_tensor(*passed))
        record = StepRecord(self._step)
        entering = self._mailboxes.enter(
            passed, Batch(info, y, self._step, self.net.units.shares_of(passed[1], c, y))
        )
        if entering is None:  # a module that is ahead needs newer batches than have been given yet
            self._ties.end_of_step(self._step)
            self._step += 1
            return record
        (args, kwargs), batch = entering
        if not self._step:
            warn_of_evaluation(self.net)
            check_first_batch(self.net, (args, kwargs))
        clear_autocast_cache()
        grad_mode, cuts = torch.is_grad_enabled(), self._cuts
        try:
            replay = None
            if self._stashes:
                devices = cuda_devices(self.net)
                # Updates are counted, because fused optimizers do not tell that they have changed a tensor.
                made = [*self._updates.made, self._ties.made]
                self._stash = WeightStash(
                    self.net.model,
                    like=self._stash if made == self._made else None,
                    copies=self._copies,
                )
                self._made = made
                replay = ForwardReplay.of_now((args, kwargs), self.net.model, devices, self._stash)
            keeping = nullcontext() if replay is None else replay.stash.saved_tensors_hooks()
            sparing = restore_buffers_after_skips(self.net, self._instruments)
            with self.net.crossed_by(cuts.cross), keeping, sparing:
                cuts.begin(batch, record, self._draw(), replay)
                output = self.net.model(*args, **kwargs)
                self.net.check_crossed()
                record.loss = cuts.at_output(output)
            cuts.turns.update_late()
            cuts.check()
        except StopForward:
            cuts.turns.update_late()
            cuts.check()
        except BaseException:
            for optimizer in self.optimizers:
                zero_grad(optimizer)  # what this step has begun must not leak into the next
            self._ties.forget()
            raise
        finally:
            torch.set_grad_enabled(grad_mode)
            cuts.end()
        self._ties.end_of_step(self._step)
        self._step += 1
        return record

    def flush(self) -> None:
        """Read the checks that the guard has queued on an accelerator.

        Raises:
            DivergedError: if a message or loss was not finite.
        """
        self._instruments.flush()

    def begin_at(self, step: int) -> None:
        """Set the number of the first step; see `stages.AssembledRun`."""
        self._step = step

    def state_dict(self) -> dict[str, Any]:
        """Return the state that a resumed run needs, in addition to ``net.state_dict()``.

        It contains the optimizers, the state of the random draws, and the messages in flight.
        """
        return {
            "optimizers": [o.state_dict() for o in self.optimizers],
            "step": self._step,
            "generator": None if self._generator is None else self._generator.get_state(),
            "carried": carried_states(self.net.model),
            "updates": self._updates.state_dict(),
            "ties": self._ties.state_dict(),
            "wires": {name: wire.state_dict() for name, wire in self._wires.items()},
            **self._mailboxes.state_dict(),
        }

    @explain_load_errors
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load the state that `state_dict` returned into an engine that was built in the same way."""
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self._step = int(state["step"])
        self._stash = None
        if self._generator is not None and state["generator"] is not None:
            self._generator.set_state(state["generator"])
        set_carried_states(self.net.model, state["carried"])
        if "updates" in state:  # states of earlier versions have none
            self._updates.load_state_dict(state["updates"])
        if "ties" in state:
            self._ties.load_state_dict(state["ties"])
        for name, wire in self._wires.items():
            wire.load_state_dict(state.get("wires", {}).get(name, {}))
        self._mailboxes.load_state_dict(state, self._cuts.rebuild, self._cuts.turns.take_turn)

    def _draw(self) -> list[bool]:
        n = len(self._optimizers)
        if self.update_prob == 1:
            return [True] * n
        return (torch.rand(n, generator=self._generator) < self.update_prob).tolist()


def _wires(net: Decoupled, codec: Codec | None, message_codec: Codec | None) -> dict[str, CodecWire]:
    """Return a wire for every interface; none without codecs."""
    check_codecs([site.shape for site in net.graph.sites.values()], codec=codec, message_codec=message_codec)
    if codec is None and message_codec is None:
        return {}
    supplied = [name for name, interface in net.interfaces.items() if interface.input_rule is not None]
    if supplied:
        raise ConfigError(
            f"interface '{supplied[0]}' has synthetic inputs, and a codec was given: in one process no activation is late; use "
            "Stages, or decouple without inputs"
        )
    return {name: CodecWire(codec, message_codec) for name in net.interfaces}
