"""What every engine shares: the record of a step, and how optimizers are made."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from ..core import ConfigError, ShapeError
from ..core.units import Units

__all__ = ["Criterion", "OptimizerFactory", "StepRecord", "make_optimizer", "reduced", "zero_grad"]

#: Takes the network's output and the target, returns a scalar loss, or the loss of each example, ``(B,)``.
Criterion = Callable[[Any, Any], Tensor]

#: Takes parameters (a list of tensors, or of parameter groups) and returns an optimizer for them.
OptimizerFactory = Callable[[Any], Optimizer]


@dataclass(slots=True)
class StepRecord:
    """What one step did.

    Attributes:
        step: number of the step, from 0.
        loss: the criterion's value, detached, on the device; None if no batch has reached the output
            yet (with forward lags).
        updated: names of the modules whose optimizer stepped.
    """

    step: int
    loss: Tensor | None = None
    updated: list[str] = field(default_factory=list[str])


def reduced(loss: Tensor, units: Units | None) -> tuple[Tensor, Tensor | None]:
    """Return a criterion's loss as a scalar, and the loss of each example where it gave these.

    Args:
        loss: scalar, or ``(B,)``.
        units: how to reduce ``(B,)``; None for the mean.

    Raises:
        ShapeError: if it is neither.
    """
    if loss.ndim == 0:
        return loss, None
    if loss.ndim > 1:
        raise ShapeError(
            f"the criterion returned shape {tuple(loss.shape)}, expected a scalar or the loss of each example (B,)"
        )
    divisor = max(loss.shape[0], 1) if units is None else units.divisor(loss)
    return loss.sum() / divisor, loss.detach()


def make_optimizer(
    factory: OptimizerFactory, *parts: tuple[Iterable[Tensor], Mapping[str, Any] | None]
) -> Optimizer | None:
    """Make one optimizer for a module's parameters and those of the rules that are updated with it.

    Args:
        factory: the user's factory.
        parts: parameters, and options of their parameter group such as ``{"lr": 1e-3}``. Those without
            options are one group; frozen parameters are left out.

    Returns:
        The optimizer; None if there is nothing to train.

    Raises:
        ConfigError: if the factory does not return an optimizer.
    """
    usual: list[Tensor] = []
    apart: list[dict[str, Any]] = []
    for parameters, options in parts:
        kept = [p for p in parameters if p.requires_grad]
        if not options:
            usual += kept
        elif kept:
            apart.append({"params": kept, **options})
    if not usual and not apart:
        return None
    groups: Any = [*([{"params": usual}] if usual else []), *apart] if apart else usual
    optimizer = factory(groups)
    if not isinstance(optimizer, Optimizer):
        raise ConfigError(
            f"the optimizer factory returned a {type(optimizer).__name__}, expected a torch.optim.Optimizer, "
            "as in lambda params: torch.optim.Adam(params, 3e-4)"
        )
    return optimizer


def zero_grad(optimizer: Optimizer) -> None:
    """Drop all gradients. Spelled out: the optimizer's own method is slower by its profiling hooks."""
    for group in optimizer.param_groups:
        for p in group["params"]:
            p.grad = None
