"""A network with its trainer, as a method has them: one way for the runs, and for the benchmarks that time them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ...core import Monitor, decouple
from ...engines import InProcess, Lag, LayerParallel, Locked, Stages, StepRecord
from .in_stages import StagesTrainer
from .methods import DataFacts, Method
from .settings import RuleSettings

__all__ = ["CHANNELS_LAST", "CrossEntropy", "Trainer", "TrainerSpec", "make_trainer", "precision_context"]

#: The faster layout of images and filters on every device; tensors of other dimensions are left alone.
CHANNELS_LAST = torch.channels_last


class CrossEntropy(nn.CrossEntropyLoss):
    """Cross entropy of scores of any precision, in float32."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return super().forward(input.float(), target)


class Trainer(Protocol):
    """What tasks ask of an engine."""

    optimizers: Any

    def step(self, x: Tensor, y: Any, *, ids: Tensor | None = None) -> StepRecord: ...
    def flush(self) -> None: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: Mapping[str, Any], /) -> None: ...


def precision_context(precision: str, device: str) -> AbstractContextManager[Any]:
    """Return the context in which a step's arithmetic runs: ``float32``, or autocast to ``bfloat16``."""
    if precision == "float32":
        return nullcontext()
    # No cache: a rule that predicts once more after its update must not see the weights before it.
    return torch.autocast(device, torch.bfloat16, cache_enabled=False)


@dataclass(frozen=True, slots=True)
class TrainerSpec:
    """How a network is trained.

    Attributes:
        method: the method.
        settings: settings of its rule.
        facts: what its rule may need to know of the data.
        lr: learning rate of Adam.
        seed: seed of draws.
        engine: ``in-process``, ``layer-parallel``, ``stages`` or ``plain``; a method without a rule has the latter.
        update_prob: probability of an update of each module, or of a network that is locked.
        precision: ``float32`` or ``bfloat16``.
        monitor: measures the interfaces' quality, or None.
        compiled: whether to compile the step of the layer-parallel engine; networks of others are compiled when they
            are made.
    """

    method: Method
    settings: RuleSettings
    facts: DataFacts
    lr: float
    seed: int
    engine: str = "in-process"
    update_prob: float = 1.0
    precision: str = "float32"
    monitor: Monitor | None = None
    compiled: bool = False


def make_trainer(
    plan: TrainerSpec, model: nn.Module, cuts: Sequence[str], example: Tensor
) -> tuple[nn.Module, Trainer]:
    """Return the network, decoupled where the method has a rule, and what trains it.

    Args:
        plan: how to train.
        model: the network, on its device; a decoupled one is a copy of it.
        cuts: names of the submodules after which to cut; unused without a rule.
        example: a batch of inputs, on the device; unused without a rule.

    Raises:
        SynthgradError: if the network cannot be cut there, or not be trained so.
    """
    method, settings, lr = plan.method, plan.settings, plan.lr
    criterion = CrossEntropy(reduction="none" if method.per_example_loss else "mean")

    def optimizer(parameters: Any) -> torch.optim.Optimizer:
        return torch.optim.Adam(parameters, lr, fused=True)  # the fastest, for every method

    generator = torch.Generator().manual_seed(plan.seed)
    if method.rule is None:
        return model, Locked(model, criterion, optimizer, update_prob=plan.update_prob, generator=generator)
    with precision_context(plan.precision, example.device.type):
        net = decouple(
            model,
            cuts,
            method.make_rule(settings, plan.facts),
            example,
            reduction="mean" if settings.per_example else "sum",
            inputs=None if method.inputs is None else method.inputs(settings),
        ).to(memory_format=CHANNELS_LAST)  # pyright: ignore[reportCallIssue]

    def at_rate(factor: float) -> dict[str, Any] | None:
        if factor == 1 and not settings.constant_lr:
            return None  # one parameter group for module and rule is the faster way
        return {"lr": lr * factor, "constant_lr": settings.constant_lr}

    options = at_rate(settings.lr_factor)
    of_inputs = settings.lr_factor if settings.input_lr_factor is None else settings.input_lr_factor
    if plan.engine == "plain":
        net.monitor = plan.monitor
        true = settings.true_messages
        return net, Locked(net, criterion, optimizer, rule_options=options, true_messages=true)
    if plan.engine == "layer-parallel":
        whole = plan.precision == "float32"
        return net, LayerParallel(
            net,
            # The scores are in float32 already, and of PyTorch's own criterion the engine knows the gradient.
            nn.CrossEntropyLoss(reduction=criterion.reduction) if whole else criterion,
            optimizer,
            rule_options=options,
            observe=settings.delay,
            fused=None if whole else False,
            compile=plan.compiled,
            monitor=plan.monitor,
        )
    if plan.engine == "stages":
        rule_waits = any(interface.rule.waits for interface in net.interfaces.values())
        # Where it is said how late a message comes, it comes then, not earlier: as in one process.
        window = settings.delay if rule_waits or settings.delay else None
        return net, StagesTrainer(
            Stages(
                net,
                criterion,
                optimizer,
                rule_options=options,
                input_options=at_rate(of_inputs),
                window=window,
                deterministic=window is not None,
                seed=plan.seed,
            )
        )
    return net, InProcess(
        net,
        criterion,
        optimizer,
        rule_options=options,
        input_options=at_rate(of_inputs),
        update_prob=plan.update_prob,
        generator=generator,
        lags=dict.fromkeys(net.interfaces, Lag(observe=settings.delay)),
        monitor=plan.monitor,
    )
