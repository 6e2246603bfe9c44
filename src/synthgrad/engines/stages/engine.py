"""Stages on ``torch.distributed``: parts of a network in processes that never wait for each other's backward pass.

Every process runs the same program and builds the same decoupled network; each trains the part between two cuts.
``stage.py`` is a step, ``links.py`` what crosses, ``window.py`` how far a stage may run ahead.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from ...core import ConfigError, Decoupled, Guard
from ..base import Criterion, OptimizerFactory, StepRecord, make_optimizer, zero_grad
from .agree import describe
from .connect import Connected, Settings, connect
from .late import LateInput
from .layout import Layout
from .replicas import average_gradients
from .split import check_predictable, parts
from .stage import Stage

__all__ = ["Stages"]


class Stages:
    """Trains a decoupled network as stages, one in each process.

    All processes make it, and call `step`, `predict`, `gather` and `close` in the same order.

    Args:
        net: what `decouple` returned, equal in all processes; every cut ends a stage. In training mode.
        criterion: takes output and target; used by the last stage.
        optimizer: takes parameters, returns an optimizer; called once, with those of this stage's module and of the
            rule at its end, which is learned where it is used.
        window: steps that an answer may be late before a stage waits for it. None to follow the link: round trip
            over step time, and two.
        deterministic: count lags in steps, not in arrival times: the answer of batch ``t − window`` is learned from
            in step ``t``. Two runs then give the same weights, those of `InProcess` with ``Lag(observe=window)``.
        observe_prob: share of the batches whose true message is sent back.
        wire_dtype: of what crosses, such as ``torch.bfloat16``; None for the network's own.
        target: a batch of targets, for shape and dtype, if targets shall travel with the activations from the first
            stage. None if every process gives its own, in the same order.
        replicas: copies of every stage, which average their gradients (data parallel). Each sees its own batches.
        rule_options: options for the rule's parameter group, such as ``{"lr": 1e-3}``.
        input_options: the same for the input rule, where ``net`` has synthetic inputs: a stage whose input is late
            then trains on a synthetic one, up to ``window`` steps ahead of the stage below. Every process gives the
            network's input then.
        example: positional arguments of a forward pass, for networks that are no Sequential.
        guard: stop with `DivergedError` at a message or loss that is not finite.
        timeout_s: how long a stage waits for another before it gives up, in seconds.
        seed: of the draws for ``observe_prob``.

    Attributes:
        optimizer: of this stage; None if it has nothing to train.
        module: of this stage.

    Raises:
        ConfigError: if a setting is out of range, the network cannot be taken apart, the number of processes is
            another than stages × replicas, or the processes differ in what they are about to run.
        StageError: if a process does not come, or fails.
    """

    def __init__(
        self,
        net: Decoupled,
        criterion: Criterion,
        optimizer: OptimizerFactory,
        *,
        window: int | None = None,
        deterministic: bool = False,
        observe_prob: float = 1.0,
        wire_dtype: torch.dtype | None = None,
        target: Tensor | None = None,
        replicas: int = 1,
        rule_options: Mapping[str, Any] | None = None,
        input_options: Mapping[str, Any] | None = None,
        example: tuple[Any, ...] | None = None,
        guard: bool = True,
        timeout_s: float = 300.0,
        seed: int = 0,
    ) -> None:
        if not isinstance(net, Decoupled):
            raise ConfigError(f"got a {type(net).__name__}, expected what synthgrad.decouple returned")
        settings = Settings(window, deterministic, observe_prob, wire_dtype, target, timeout_s, seed)
        settings.check()
        self.net = net
        modules = parts(net, example)
        _check_rules(net, settings, replicas)
        self.layout = layout = Layout.here(len(modules), replicas)
        sites = list(net.graph.sites.values())
        rules = [net.interfaces[site.name].rule for site in sites]
        self.module = modules[layout.stage]
        self._name = net.graph.modules[layout.stage].name
        rule = None if layout.is_last else rules[layout.stage]
        device = sites[min(layout.stage, len(sites) - 1)].device
        self._guard = Guard() if guard else None
        self._links: Connected = connect(
            layout,
            [(site.shape[1:], site.dtype) for site in sites],
            rule,
            settings,
            {"the network": describe(net)},
            device,
        )
        self._rule = rule
        below = self._links.below
        supplies = None if layout.is_first else net.interfaces[sites[layout.stage - 1].name].input_rule
        self._stage = Stage(
            self._wrapped(self.module),
            net.units,
            criterion if layout.is_last else None,
            rule,
            below=below,
            above=self._links.above,
            window=self._links.window,
            exact=deterministic,
            guard=self._guard,
            name=self._name,
            sends_target=target is not None,
            late=None if supplies is None or below is None else LateInput(supplies, below),
        )
        own = [] if rule is None else list(rule.parameters())
        self.optimizer: Optimizer | None = make_optimizer(
            optimizer,
            (self.module.parameters(), None),
            (own, rule_options),
            ([] if supplies is None else supplies.parameters(), input_options),
        )
        self._owned = [[module] for module in modules]  # of each stage: its module and rules
        for k, site in enumerate(sites):
            interface = net.interfaces[site.name]
            self._owned[k].append(interface.rule)
            self._owned[k + 1] += [] if interface.input_rule is None else [interface.input_rule]
        self._step = 0
        self._passes = 0
        self._busy_s = 0.0

    def _wrapped(self, module: nn.Module) -> nn.Module:
        group = self._links.groups.replicas
        if group is None or not any(p.requires_grad for p in module.parameters()):
            return module
        return DistributedDataParallel(module, process_group=group)

    # -- training ---------------------------------------------------------------------------------------

    def step(
        self, x: Any = None, y: Any = None, *, context: Tensor | None = None, ids: Tensor | None = None
    ) -> StepRecord:
        """Run one step of this stage. Waits for the activation from below, and if the window is full for an answer.

        Args:
            x: input, ``(B, ...)``; read by the first stage only.
            y: target. By every process, unless targets travel with the activations: then by the first stage.
            context: of the rules; ``y`` where nothing is given.
            ids: ``(B,)`` int64, which examples these are.

        Returns:
            The record; its loss is that of the last stage, None elsewhere.

        Raises:
            StageError: if another process has stopped, with the cause.
            DivergedError: if a message or the loss is not finite.
        """
        if self.layout.is_first and x is None:
            raise ConfigError("the first stage got no input: call step(x, y) there")
        start, waited = time.perf_counter(), self.waited_s
        record = StepRecord(self._step)
        try:
            record.loss = self._stage.run(self._step, x, y, context, ids).loss
            if self._links.groups.replicas is not None and self._rule is not None:
                average_gradients(self._rule, self._links.groups.replicas)
            if self.optimizer is not None and self._has_gradient():
                self.optimizer.step()
                zero_grad(self.optimizer)
                record.updated.append(self._name)
        except BaseException as error:
            self._fail(error)
            raise
        busy_s = time.perf_counter() - start - (self.waited_s - waited)
        self._links.window.took(busy_s)
        self._busy_s += busy_s
        self._step += 1
        return record

    def _has_gradient(self) -> bool:
        assert self.optimizer is not None
        return any(p.grad is not None for group in self.optimizer.param_groups for p in group["params"])

    def predict(self, x: Any = None) -> Tensor | None:
        """Run forward through all stages, in evaluation mode; return the output in the last stage, None elsewhere.

        Args:
            x: input, ``(B, ...)``; read by the first stage only.

        Raises:
            ConfigError: for a network that torch.export has split, if evaluation differs from training there.
            StageError: if another process has stopped, with the cause.
        """
        check_predictable(self.module, self.net)
        training = self.module.training
        self.module.eval()
        try:
            with torch.no_grad():
                return self._stage.predict(self._passes, x)
        except BaseException as error:
            self._fail(error)
            raise
        finally:
            self._passes += 1
            self.module.train(training)

    def gather(self) -> None:
        """Bring the weights of all stages into the network of every process. Blocks; all must call it."""
        for stage, owned in enumerate(self._owned):
            for part in owned:
                for tensor in (*part.parameters(), *part.buffers()):
                    dist.broadcast(tensor.data, stage * self.layout.num_replicas)

    def close(self) -> None:
        """Part from the neighbours in order. Blocks; all must call it. The process group stays as it is."""
        if self._guard is not None:
            self._guard.flush()
        try:
            self._stage.catch_up()
            self._links.end()
        except BaseException as error:
            self._fail(error)
            raise

    def __enter__(self) -> Stages:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        if error is None:
            self.close()
        else:
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        """Tell the others, and leave nothing that waits."""
        if self.optimizer is not None:
            zero_grad(self.optimizer)
        self._links.fail(error)

    # -- what can be known ------------------------------------------------------------------------------

    @property
    def waited_s(self) -> float:
        """Time this stage has spent waiting for others so far, in seconds."""
        return self._links.waited_s

    @property
    def busy_s(self) -> float:
        """Time this stage has spent in steps without waiting so far, in seconds."""
        return self._busy_s

    @property
    def sent_bytes(self) -> int:
        """What this process has sent to its neighbours so far, in bytes."""
        return self._links.sent_bytes

    @property
    def num_synthetic(self) -> int:
        """Batches so far that this stage has trained on synthetic inputs."""
        return 0 if self._stage.late is None else self._stage.late.num_synthetic

    @property
    def window(self) -> int:
        """Steps that an answer may be late now."""
        return self._links.window.size

    @property
    def round_trip_s(self) -> float:
        """Round trip to the stage above as measured at the start, in seconds; 0 for the last stage."""
        return self._links.round_trip_s


def _check_inputs(net: Decoupled, settings: Settings, replicas: int) -> None:
    supplied = [name for name, interface in net.interfaces.items() if interface.input_rule is not None]
    if not supplied:
        return
    where = f"interface '{supplied[0]}' has synthetic inputs"
    if settings.exact:
        raise ConfigError(
            f"{where}, which are used when the real ones are late, and deterministic=True wants runs alike; use one of "
            "the two, or InProcess"
        )
    if replicas > 1 or settings.target is not None or any(i.rule.waits for i in net.interfaces.values()):
        raise ConfigError(
            f"{where}: not together with replicas, targets that travel or rules that wait; leave these out, or decouple "
            "without inputs"
        )


def _check_rules(net: Decoupled, settings: Settings, replicas: int) -> None:
    _check_inputs(net, settings, replicas)
    for name, interface in net.interfaces.items():
        rule = interface.rule
        if not rule.waits:
            continue
        if settings.window is None:
            raise ConfigError(
                f"the rule at interface '{name}' has the module below wait for its message: say how many steps, as in "
                "window=0 (backpropagation) or window=2 (delayed gradients)"
            )
        if settings.observe_prob != 1:
            raise ConfigError(
                f"observe_prob={settings.observe_prob}: the rule at interface '{name}' waits for every message; use 1"
            )
        if settings.window and replicas > 1:
            raise ConfigError(
                f"the rule at interface '{name}' waits, and with window={settings.window} several graphs are kept, "
                "which data parallel replicas cannot average; use window=0 or one replica"
            )
