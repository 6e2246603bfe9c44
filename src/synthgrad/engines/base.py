"""What every engine shares: the record of a step, and how a criterion's loss is reduced."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from torch import Tensor

from ..core import ConfigError, ShapeError, SynthgradError
from ..core.given import brief
from ..core.units import Units

__all__ = ["Criterion", "Passed", "StepRecord", "loads_state", "model_inputs", "reduced"]

#: The positional and keyword arguments of a forward pass.
Passed = tuple[tuple[Any, ...], dict[str, Any]]

#: Takes the network's output and the target, returns a scalar loss, or the loss of each example, ``(B,)``.
Criterion = Callable[[Any, Any], Tensor]


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
    if not isinstance(loss, Tensor):
        raise ShapeError(
            f"the criterion returned {brief(loss)}, expected a tensor: the loss with its graph, without .item()"
        )
    if loss.ndim == 0:
        return loss, None
    if loss.ndim > 1:
        raise ShapeError(
            f"the criterion returned shape {tuple(loss.shape)}, expected a scalar or the loss of each example (B,)"
        )
    return (Units() if units is None else units).reduce(loss), loss.detach()


def model_inputs(x: Any, keywords: Mapping[str, Any]) -> Passed:
    """Return the positional and keyword arguments of a forward pass.

    Args:
        x: one input; a tuple of positional arguments; or a mapping of keyword arguments, as a collator makes it.
        keywords: further keyword arguments.

    Raises:
        ConfigError: if a keyword is given twice.
    """
    if isinstance(x, Mapping):
        twice = sorted(set(x) & set(keywords))
        if twice:
            raise ConfigError(
                f"the input '{twice[0]}' is given twice, in the batch and as a keyword; give it once"
            )
        return (), {**x, **keywords}
    return (x if isinstance(x, tuple) else () if x is None else (x,)), dict(keywords)


_Engine = TypeVar("_Engine")


def loads_state(
    load: Callable[[_Engine, Mapping[str, Any]], None],
) -> Callable[[_Engine, Mapping[str, Any]], None]:
    """Decorate a ``load_state_dict``: what is no state of an engine like this one is refused in one sentence."""

    @functools.wraps(load)
    def checked(self: _Engine, state: Mapping[str, Any]) -> None:
        try:
            load(self, state)
        except SynthgradError:
            raise
        except (KeyError, ValueError, TypeError, IndexError, AttributeError, RuntimeError) as error:
            name = type(self).__name__
            raise ConfigError(
                f"the state does not fit this {name} engine ({type(error).__name__}: {error}); give what its "
                "state_dict() returned, and build network, cuts, lags and optimizers as they were then"
            ) from error

    return checked
