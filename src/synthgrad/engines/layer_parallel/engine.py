"""The layer-parallel engine: one batched step for all layers, each on its own batch.

::

    step t      module 0 ── batch t      interface 0: credit for batch t,    message for batch t − 1
                module 1 ── batch t − 1  interface 1: credit for batch t − 1, message for batch t − 2
                module k ── batch t − k  interface k: credit for batch t − k, message for batch t − k − 1
                   ╰── one forward, one credit, one backward, one observation, one update for all k ──╯

Within a step no layer depends on another layer, except for the messages, and nothing waits for these: the
message of module ``k + 1`` belongs to the batch that module ``k`` worked on one step before. So the engine
computes exactly what `InProcess` computes with ``Lag(forward=1)`` at every interface, with as many kernels as
a single layer needs.

In the first steps some layers have not been reached by any batch. They run on meaningless numbers: their
gradients are not used, and their buffers are restored.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Mapping, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from ...core import (
    ConfigError,
    Decoupled,
    DivergedError,
    Guard,
    Info,
    Monitor,
    ShapeError,
    Timeline,
    Units,
)
from ...core.in_flight import Batch
from ...core.tokens import explain_lost_labels, explained
from ..base import Criterion, StepRecord, explain_load_errors
from ..in_process.lags import Lag
from ..optimizers import (
    OptimizerFactory,
    check_optimizer,
    clear_autocast_cache,
    make_optimizers,
    parameters_by_role,
)
from ..penalty import Penalty
from ..watch import check_loss_once
from .adam import RowAdam
from .backend import BackendOutput, FullStep, StepBackend
from .batch_queue import BatchQueue, RowsInFlight, shares_of
from .build import LayerGroups, check_run_dimension, check_settings, find_layer_groups
from .compiled import check_compilable, make_full_step
from .finite import RowGuard
from .fused import fused_backend
from .general import GeneralBackend, TopModules
from .labels import check_ids, num_ids
from .rules import InterfaceRows
from .sequential_rules import stack_rules
from .storage import GradientTable, preserving_rows
from .timeline import log_step
from .trainable import PenaltyGradients, TrainableParameters
from .updates import Updates

__all__ = ["LayerParallel"]


class LayerParallel:
    """Trains all layers of a decoupled network in one batched step; or several networks of one shape at once.

    The network is an ``nn.Sequential`` with a first module, blocks of equal shape, and a last module, with a
    cut between each two. Its parameters become views of batched ones, so the network can be evaluated, saved
    and trained by other engines as before.

    Args:
        net: the network that `decouple` returned, in training mode; or several of one shape, which train side
            by side on their own batches.
        criterion: takes output and target, returns a scalar loss, reduced as ``net.units`` says, or the loss
            of each example, ``(B,)``.
        optimizer: takes parameters, returns an optimizer; called once for each module of each network, as in
            `InProcess`. With several networks it may be a list with one factory for each, of different
            learning rates.
        rule_options: options for the rules' parameter groups, such as ``{"lr": 1e-3}``.
        observe: the number of steps that a message waits before its rule observes it.
        penalty: a term of the loss that does not depend on the output; a function of a module's parameters,
            as in `InProcess`. Not with ``compile``, and for one network only.
        fused: whether to use the fused step for Linear–BatchNorm–ReLU layers with linear ``M``; False for the
            general step, None for the fused step if it fits.
        compile: whether to compile the step into one graph by ``torch.compile``; or keywords of that
            function. The settings of the modules are then those of the first full step.
        monitor: measures the quality of credits; None to measure nothing. For one network only.
        guard: whether to stop with `DivergedError` at an activation, credit, message or loss that is not
            finite.
        timeline: records what happens, all events of a kind at once; None to record nothing. For one network
            only.

    Attributes:
        lags: the lags by interface with which `InProcess` computes the same.

    Under ``torch.autocast`` use ``fused=False``: the fused step computes in the precision of the parameters,
    and refuses to run under autocast.

    Raises:
        ConfigError: if the network cannot be trained so; names the block or interface.
    """

    def __init__(
        self,
        net: Decoupled | Sequence[Decoupled],
        criterion: Criterion,
        optimizer: OptimizerFactory | Sequence[OptimizerFactory],
        *,
        rule_options: Mapping[str, Any] | None = None,
        observe: int = 0,
        penalty: Penalty | None = None,
        fused: bool | None = None,
        compile: bool | Mapping[str, Any] = False,
        monitor: Monitor | None = None,
        guard: bool | Guard = True,
        timeline: Timeline | None = None,
    ) -> None:
        nets = [net] if isinstance(net, Decoupled) else list(net)
        for each in nets:
            if not isinstance(each, Decoupled):
                raise ConfigError(f"got a {type(each).__name__}, expected what synthgrad.decouple returned")
        if not callable(optimizer) and not isinstance(optimizer, Sequence):
            check_optimizer(optimizer)
        factories = [optimizer] * len(nets) if callable(optimizer) else list(optimizer)
        check_settings(nets, criterion, factories, observe, monitor, timeline)
        parts = find_layer_groups(nets)
        listened = any(rule.listens for rule in parts.rules) or monitor is not None
        self.nets = nets
        self.lags = {name: Lag(1, observe) for name in nets[0].interfaces}
        self.monitor = monitor
        self._timeline = timeline
        self._observe_lag = observe
        self._runs = len(nets)
        self._names = parts.names
        self._rows = len(self._names) - 1  # the number of interfaces
        self._shape = parts.shape
        self._looks_up = num_ids(parts.first[0]) if len(nets) > 1 else 0
        self._interfaces = list(nets[0].interfaces)
        self._units = nets[0].units
        found = Guard.of(guard, skips=False)
        self._guard = None if found is None else RowGuard(self._interfaces, len(nets), found.every)
        if len(nets) == 1:
            criterion = check_loss_once(criterion, nets[0])
        learned = {id(n.model.get_parameter(p)) for n in nets for m in n.graph.modules for p in m.parameters}
        self._backend = _make_backend(parts, criterion, self._units, learned, fused=fused, listened=listened)
        self._learn = make_full_step(self._backend, compile)
        self._compile = compile
        self._learn_and_update: FullStep | None = None
        self._sequential = self._backend.rules.sequential
        gradients = GradientTable()
        self._backend.register(gradients, len(self._names), observe)
        self._updates = Updates(
            [
                make_optimizers(
                    factory, m.name, *zip(parameters_by_role(n, m, k)[:2], (None, rule_options), strict=True)
                )
                for n, factory in zip(nets, factories, strict=True)
                for k, m in enumerate(n.graph.modules)
            ],
            gradients,
        )
        self._gradients = gradients
        self._trainable = TrainableParameters(nets)
        self._penalty_gradients = None
        if penalty is not None:
            self._penalty_gradients = PenaltyGradients(
                nets, penalty, gradients, compiled=compile is not False
            )
        self._queue = BatchQueue(self._rows, self._runs)
        self._below: RowsInFlight | None = None
        self._sent: deque[RowsInFlight] = deque()
        self._size: tuple[int, ...] | None = None
        self._bound = [(p, p.data_ptr()) for n in nets for p in islice(n.parameters(), 1)]
        self._step = 0

    @property
    def net(self) -> Decoupled:
        """The network; if there are several, the first."""
        return self.nets[0]

    @property
    def optimizers(self) -> list[torch.optim.Optimizer]:
        """The optimizers of the modules, in the order of the forward pass, run by run."""
        return self._updates.optimizers

    def step(
        self, x: Tensor, y: Any, *, context: Tensor | None = None, ids: Tensor | None = None
    ) -> StepRecord:
        """Run one step: every module that a batch has reached learns from the batch that it works on.

        Args:
            x: the input, ``(B, ...)``, of the same size in all steps. With several networks ``(runs, B,
                ...)``, and all other tensors likewise.
            y: the target, as the criterion expects it.
            context: the context of the rules, ``(B, ...)``; by default ``y``, if it is a tensor.
            ids: ``(B,)`` int64, the ids of the examples.

        Returns:
            The record. Its loss is that of the batch that the last module works on, ``(runs,)`` with several
            networks; None while no batch has reached the last module.

        Raises:
            DivergedError: if a message or the loss is not finite; names interface and step.
            ShapeError: if the batch does not have the size of the first batch.
            ContextError: if the rules need labels, and these are missing or have the wrong shape; if labels are
                outside the vocabulary, or none counts.
            ConfigError: if PyTorch cannot run the blocks as one batch, the network has been moved, or an id is outside
                an embedding.
        """
        if any(p.data_ptr() != place for p, place in self._bound):
            raise ConfigError(
                "the network's parameters have been moved since the engine was made (by net.to(...), or by "
                "another engine of this kind); make the engine anew"
            )
        self._trainable.check()
        self._trainable.check_precision(x)
        clear_autocast_cache()
        self._check_size(x)
        if self._runs > 1:
            check_run_dimension(self._runs, target=y, context=context)
        t = self._step
        c = y if context is None and isinstance(y, Tensor) else context
        shares = shares_of(self._units, self._runs, x, y, c)
        if self._looks_up:
            check_ids(self._looks_up, x)
        self._queue.enter(Batch(Info(c, ids, t, x if self._sequential else None), y, t, shares))
        try:
            with explained(self.net.model):
                record = self._run(x if self._runs > 1 else x.unsqueeze(0), t)
        except BaseException:
            self._queue.leave()  # after a failed step, batches and activations must still belong together
            self._size = self._size if t else None
            raise
        self._step += 1
        return record

    def check_compilable(self) -> None:
        """Refuse what ``compile`` would refuse, in an engine that was made without it.

        Raises:
            ConfigError: if the rules are asked one by one, which no graph can hold.
        """
        check_compilable(self._backend)

    def flush(self) -> None:
        """Read the checks that the guard has queued on an accelerator.

        Raises:
            DivergedError: if a message or loss was not finite.
        """
        if self._guard is not None:
            self._guard.flush()

    # -- a step -------------------------------------------------------------------------------------------

    def _run(self, x: Tensor, t: int) -> StepRecord:
        below, contexts, runs = self._below or self._nothing(x), self._queue.contexts, self._runs
        self._backend.check(x)
        self._backend.rules.check(below.rows.h[0], None if contexts is None else contexts[:runs])
        reached = min(t + 1, self._rows) * runs
        infos = self._queue.infos() if self._sequential else ()
        rows = InterfaceRows(below.rows.h, contexts, reached, infos, self._queue.shares)
        self._gradients.absent.clear()
        full = t > self._rows + self._observe_lag
        adam = None
        if full and self._compile is not False:
            # On an accelerator the guard reads its queue some steps after the update.
            guarded = self._guard is not None and x.is_cpu
            adam = self._updates.adam(t, self._backend.stacked, guarded=guarded)
        output = self._full_step(x, below, rows, adam) if full else self._filling_step(x, below, rows, t)
        below.messages, below.values = output.messages, output.values
        self._sent.append(below)
        observation = self._sent.popleft() if len(self._sent) > self._observe_lag else None
        if self.monitor is not None and observation is not None:
            self._measure(self.monitor, observation)
        if self._penalty_gradients is not None:
            self._penalty_gradients.add(t)
        updated = self._updates.step(t) if adam is None else self._updates.all
        self._below = RowsInFlight(
            rows._replace(h=output.h), None if self.monitor is None else output.credits.delta
        )
        loss = None if output.losses is None else output.losses if runs > 1 else output.losses[0]
        names = self._names_of(updated)
        if self._timeline is not None:
            observed = (
                observation.rows.reached if observation is not None and self._backend.rules.listens else 0
            )
            log_step(self._timeline, self._names, t, output, observed, self._observe_lag, names)
        return StepRecord(t, loss, names)

    def _full_step(
        self, x: Tensor, below: RowsInFlight, rows: InterfaceRows, adam: RowAdam | None
    ) -> BackendOutput:
        """Compute the gradients of all parameters, or update these at once."""
        batch = self._queue.top
        assert batch is not None
        observation = None
        if self._observe_lag and self._backend.rules.listens:
            sent = self._sent[0]
            assert sent.messages is not None
            observation = sent.rows, sent.messages, sent.values
        learn = self._learn if adam is None else self._with(adam)
        output, total = learn(x, below.rows, rows, batch.target, observation)
        all_rows = self._rows * self._runs
        self._check_finite(output, all_rows, all_rows, total)
        return output

    def _check_finite(
        self, output: BackendOutput, reached: int, came: int, total: Tensor | None = None
    ) -> None:
        """Let the guard see a step; see `RowGuard.check`."""
        if self._guard is None:
            return
        try:
            self._guard.check(self._step, output, reached, came, total)
        except DivergedError as error:
            top = self._queue.top
            targets = () if top is None else (top.target,) if self._runs == 1 else top.target
            for own in targets:
                found = explain_lost_labels(error, self._step, own, self._units)
                if found is not None:
                    raise found from error
            raise

    def _with(self, adam: RowAdam) -> FullStep:
        """Return the compiled step that ends with an update. It is compiled once."""
        if self._learn_and_update is None:
            self._learn_and_update = make_full_step(self._backend, self._compile, adam)
        return self._learn_and_update

    def _filling_step(self, x: Tensor, below: RowsInFlight, rows: InterfaceRows, t: int) -> BackendOutput:
        """Run a step while there are layers that no batch has reached: their buffers are restored."""
        backend, batch, runs, reached = self._backend, self._queue.top, self._runs, rows.reached
        with (
            preserving_rows(backend.buffers, reached - backend.offset),
            preserving_rows(backend.rule_buffers, reached),
        ):
            target = None if batch is None else batch.target
            output = backend.run(x, below.rows, rows, target, at_top=batch is not None)
        self._check_finite(output, reached, min(t, self._rows) * runs)
        below.messages, below.values = output.messages, output.values
        sent = [*self._sent, below]
        if len(sent) > self._observe_lag and backend.rules.listens:
            observation = sent[0]
            assert observation.messages is not None
            if observation.rows.reached:
                with preserving_rows(backend.rule_buffers, observation.rows.reached):
                    backend.rules.observe(observation.rows, observation.messages, observation.values)
        return output

    def _measure(self, monitor: Monitor, observation: RowsInFlight) -> None:
        """Compare the credits of one step with the messages that have arrived for it."""
        if observation.messages is None or observation.delta is None:
            return
        reached = observation.rows.reached
        credits = self._units.with_shares(observation.rows.shares).counted(observation.delta)
        for name, delta, message in zip(
            self._interfaces, credits, observation.messages[:reached], strict=False
        ):
            monitor.record(name, delta, message)

    def _names_of(self, updated: Sequence[int]) -> list[str]:
        """Return the names of the updated modules, each once."""
        if len(updated) == self._runs * len(self._names):
            return list(self._names)
        return list(dict.fromkeys(self._names[k % len(self._names)] for k in updated))

    def _nothing(self, x: Tensor) -> RowsInFlight:
        """Return zeros as the inputs of the layers above the first, for the first step."""
        p = next(self.net.parameters(), x)
        h = torch.zeros(self._rows * self._runs, x.shape[1], *self._shape, dtype=p.dtype, device=x.device)
        return RowsInFlight(InterfaceRows(h, self._queue.contexts, 0, (), self._queue.shares))

    # -- checks -------------------------------------------------------------------------------------------

    def _check_size(self, x: Tensor) -> None:
        if self._size is None:
            if not isinstance(x, Tensor) or x.ndim < 1 + (self._runs > 1):
                raise ShapeError(
                    f"got {type(x).__name__}, expected a tensor of inputs with a batch dimension"
                )
            if self._runs > 1 and x.shape[0] != self._runs:
                raise ShapeError(
                    f"got inputs of shape {tuple(x.shape)} for {self._runs} networks, expected ({self._runs}, B, ...)"
                )
            self._size = tuple(x.shape)
        elif x.shape != self._size:
            raise ShapeError(
                f"got inputs of shape {tuple(x.shape)}, expected {self._size} as in the first step: layers run as one "
                "batch, so all batches must have one size; drop the last, smaller one"
            )

    # -- resuming -----------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return the state that a resumed run needs, in addition to ``net.state_dict()``.

        It contains the optimizers, and the batches on their way through the network.
        """
        return {
            "optimizers": [o.state_dict() for o in self.optimizers],
            "step": self._step,
            "belt": self._queue.state_dict(),
            "below": None if self._below is None else self._below.state_dict(),
            "sent": [sent.state_dict() for sent in self._sent],
            "size": self._size,
        }

    @explain_load_errors
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load the state that `state_dict` returned into an engine that was built in the same way."""
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self._updates.forget()
        self._step = int(state["step"])
        self._size = state["size"]
        self._queue.load_state_dict(state["belt"])
        self._below = None if state["below"] is None else RowsInFlight.from_state(state["below"])
        self._sent = deque(RowsInFlight.from_state(saved) for saved in state["sent"])


def _make_backend(
    parts: LayerGroups,
    criterion: Criterion,
    units: Units,
    learned: Collection[int],
    *,
    fused: bool | None,
    listened: bool,
) -> StepBackend:
    """Return the backend: the fused one if it fits and is not disabled."""
    if fused is not False:
        found = fused_backend(parts, criterion, units, learned)
        if found is not None:
            return found
    if fused:
        raise ConfigError(
            "fused=True is for Linear–BatchNorm–ReLU modules, all their parameters learning, with linear synthetic "
            "gradients of vectors at every cut; leave it out"
        )
    inner = parts.names[1:-1]
    name = f"blocks '{inner[0]}' to '{inner[-1]}'" if len(inner) > 1 else f"block '{inner[0]}'"
    top = TopModules(parts.last, criterion, units, learned, listened=listened)
    rules = stack_rules(parts.rules)
    return GeneralBackend(parts.first, parts.inner, top, rules, units, learned, name=name, listened=listened)
