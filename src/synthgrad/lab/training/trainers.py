"""Builds the network and the trainer of a method, for training runs and for the benchmarks that time them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ...core import ConfigError, Monitor, decouple
from ...engines import InProcess, Lag, LayerParallel, Locked, Stages, StepRecord
from ...engines.codecs import cast
from .codec_names import codec_from
from .in_stages import StagesTrainer
from .methods import DataFacts, Method
from .optimizers import optimizer_factory
from .settings import RuleSettings

__all__ = [
    "CHANNELS_LAST",
    "CrossEntropy",
    "TokenCrossEntropy",
    "Trainer",
    "TrainerSpec",
    "make_trainer",
    "precision_context",
]

#: The faster memory layout of images and filters on every device; it does not change tensors of other dimensions.
CHANNELS_LAST = torch.channels_last


class CrossEntropy(nn.CrossEntropyLoss):
    """Cross-entropy computed in float32, for scores of any dtype."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return super().forward(input.float(), target)


class TokenCrossEntropy(CrossEntropy):
    """Cross-entropy of scores ``(B, T, V)`` and tokens ``(B, T)``; without a reduction, each example's mean, ``(B,)``."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        losses = super().forward(input.flatten(0, 1), target.flatten())
        return losses if self.reduction == "mean" else losses.view(target.shape).mean(1)


class Trainer(Protocol):
    """The interface of an engine that tasks use."""

    optimizers: Any

    def step(self, x: Tensor, y: Any, *, ids: Tensor | None = None) -> StepRecord: ...
    def flush(self) -> None: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: Mapping[str, Any], /) -> None: ...


def precision_context(precision: str, device: str) -> AbstractContextManager[Any]:
    """Return the context for the arithmetic of a step: none for ``float32``, autocast for ``bfloat16``."""
    if precision == "float32":
        return nullcontext()
    # No cache, because a rule that predicts again after its update must use its new weights.
    return torch.autocast(device, torch.bfloat16, cache_enabled=False)


@dataclass(frozen=True, slots=True)
class TrainerSpec:
    """The settings of a trainer.

    Attributes:
        method: the method.
        settings: settings of the method's rule.
        facts: facts about the data that the rule may need.
        lr: learning rate.
        seed: seed of the random generator for sparse updates.
        engine: ``in-process``, ``layer-parallel``, ``stages`` or ``plain``; ignored by methods without a rule.
        update_prob: probability that a module updates in a step; for backpropagation, that the network does.
        precision: ``float32`` or ``bfloat16``.
        monitor: monitor of the interfaces' quality, or None.
        compiled: whether to compile the step of the layer-parallel engine. For other engines, `compile_network` compiles
            the network afterwards.
        optimizer, error_feedback, accumulate, versions: as in `Schedule`.
        tokens: whether the network has scores ``(B, T, V)`` for tokens ``(B, T)``.
        tied_lag: after how many updates weights learn that two modules share; None where there are none.
        free_running: whether stages learn from answers when they come, at most as late as the rule's delay.
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
    optimizer: str = "adam"
    error_feedback: bool = False
    accumulate: int = 1
    versions: int | None = None
    tokens: bool = False
    tied_lag: int | None = None
    free_running: bool = False


def make_trainer(
    spec: TrainerSpec, model: nn.Module, cuts: Sequence[str], example: Tensor
) -> tuple[nn.Module, Trainer]:
    """Return a network and its trainer; the network is decoupled if the method has a rule.

    Args:
        spec: settings of the trainer.
        model: the plain network, on its device; a decoupled network is a copy of it.
        cuts: names of the submodules after which to cut; ignored by methods without a rule.
        example: a batch of inputs, on the device; ignored by methods without a rule.

    Raises:
        SynthgradError: if the network cannot be cut there, or the engine cannot train it.
    """
    method, settings, lr = spec.method, spec.settings, spec.lr
    wires = _wires(spec)
    loss_of = TokenCrossEntropy if spec.tokens else CrossEntropy
    criterion = loss_of(reduction="none" if method.per_example_loss else "mean")
    generator = torch.Generator().manual_seed(spec.seed)
    # Only if it is set, because not every engine takes it.
    accumulate: dict[str, Any] = {} if spec.accumulate == 1 else {"accumulate": spec.accumulate}
    versions: dict[str, Any] = {} if spec.versions is None else {"versions": spec.versions}
    tied: dict[str, Any] = {} if spec.tied_lag is None else {"tied_lag": spec.tied_lag}
    if method.rule is None:
        optimizer = optimizer_factory(spec.optimizer, lr, model)
        return model, Locked(
            model, criterion, optimizer, update_prob=spec.update_prob, generator=generator, **accumulate
        )
    with precision_context(spec.precision, example.device.type):
        net = decouple(
            model,
            cuts,
            method.make_rule(settings, spec.facts),
            example,
            reduction="mean" if settings.per_example else "sum",
            inputs=None if method.inputs is None else method.inputs(settings),
        ).to(memory_format=CHANNELS_LAST)  # pyright: ignore[reportCallIssue]

    optimizer = optimizer_factory(spec.optimizer, lr, net, error_feedback=spec.error_feedback)

    def at_rate(factor: float) -> dict[str, Any] | None:
        if factor == 1 and not settings.constant_lr:
            return None  # a single parameter group for module and rule is faster
        return {"lr": lr * factor, "constant_lr": settings.constant_lr}

    options = at_rate(settings.lr_factor)
    input_lr_factor = settings.lr_factor if settings.input_lr_factor is None else settings.input_lr_factor
    if spec.engine == "plain":
        if settings.delay:
            raise ConfigError(
                f"method '{method.name}' with a delay of {settings.delay} in the plain loop, where no message is late; use "
                "the in-process engine, or leave the delay out"
            )
        net.monitor = spec.monitor
        true = settings.true_messages
        return net, Locked(net, criterion, optimizer, rule_options=options, true_messages=true, **accumulate)
    if spec.engine == "layer-parallel":
        float32 = spec.precision == "float32"
        return net, LayerParallel(
            net,
            # The engine has a closed form of the gradient of PyTorch's own criterion.
            nn.CrossEntropyLoss(reduction=criterion.reduction) if float32 else criterion,
            optimizer,
            rule_options=options,
            observe=settings.delay,
            fused=None if float32 else False,
            compile=spec.compiled,
            monitor=spec.monitor,
        )
    if spec.engine == "stages":
        rule_waits = any(interface.rule.waits for interface in net.interfaces.values())
        # With a given delay a message is applied exactly that late, as the in-process engine does, unless stages run free.
        window = settings.delay if rule_waits or settings.delay else None
        return net, StagesTrainer(
            Stages(
                net,
                criterion,
                optimizer,
                rule_options=options,
                input_options=at_rate(input_lr_factor),
                window=window,
                deterministic=window is not None and not spec.free_running,
                accumulate=spec.accumulate,
                seed=spec.seed,
                **tied,
                **wires,
            )
        )
    return net, InProcess(
        net,
        criterion,
        optimizer,
        rule_options=options,
        input_options=at_rate(input_lr_factor),
        update_prob=spec.update_prob,
        generator=generator,
        lags=dict.fromkeys(net.interfaces, Lag(observe=settings.delay)),
        monitor=spec.monitor,
        **accumulate,
        **versions,
        **tied,
        **wires,
    )


def _wires(spec: TrainerSpec) -> dict[str, Any]:
    """Return the codecs of what crosses interfaces, as engines take them; nothing where it crosses as it is.

    Raises:
        ConfigError: if there is no such codec, or nothing crosses anything.
    """
    codec, message_codec = spec.settings.codec, spec.settings.message_codec
    if spec.method.rule is None or (codec == "float32" and message_codec is None):
        return {}
    found = {"codec": codec_from(codec), "message_codec": None}
    if message_codec is not None:
        found["message_codec"] = codec_from(message_codec) or cast(torch.float32)
    if spec.engine not in ("in-process", "stages"):
        raise ConfigError(
            f"codec '{codec if message_codec is None else message_codec}' with the {spec.engine} engine: only in-process and "
            "stages have wires; use one of these, or leave it out"
        )
    return found
