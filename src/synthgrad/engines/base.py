"""The record of a step, the arguments of a forward pass, and other things that engines share."""

from __future__ import annotations

import functools
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ..core import ConfigError, DivergedError, ShapeError, SynthgradError
from ..core.given import brief
from ..core.instruments import Instruments
from ..core.quality import is_finite
from ..core.tokens import explain_lost_labels
from ..core.units import Units

__all__ = [
    "Criterion",
    "ForwardArgs",
    "StepRecord",
    "check_loss",
    "explain_load_errors",
    "forward_args",
    "reduce_loss",
    "restore_buffers_after_skips",
]

#: The positional and keyword arguments of a forward pass.
ForwardArgs = tuple[tuple[Any, ...], dict[str, Any]]

#: A criterion takes the network's output and the target. It returns a scalar loss, or the loss of each example, ``(B,)``.
Criterion = Callable[[Any, Any], Tensor]


@dataclass(slots=True)
class StepRecord:
    """What happened in one step.

    Attributes:
        step: the number of the step, from 0.
        loss: the criterion's value, detached, on the device; None if no batch has reached the output yet
            (with forward lags).
        updated: the names of the modules whose optimizers stepped.
    """

    step: int
    loss: Tensor | None = None
    updated: list[str] = field(default_factory=list[str])


def reduce_loss(loss: Tensor, units: Units | None) -> tuple[Tensor, Tensor | None]:
    """Return a criterion's loss as a scalar, and the loss of each example if the criterion returned these.

    Args:
        loss: a scalar, or ``(B,)``.
        units: how a loss ``(B,)`` is reduced, of the batch at hand where tokens are counted; None for the mean.

    Raises:
        ShapeError: if the loss has more than one dimension.
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


def check_loss(instruments: Instruments, loss: Tensor, labels: Any, units: Units | None = None) -> bool:
    """Let the guard see a loss, detached; return whether it is finite, as far as is known.

    Args:
        instruments: with the guard, and the step at hand.
        loss: a scalar.
        labels: of the batch, or whatever else its target is.
        units: how the criterion reduces; None for the mean.

    Raises:
        ContextError: if it is not finite because no label of the batch counts.
        DivergedError: if it is not finite for another reason.
    """
    try:
        return instruments.check("loss", loss)
    except DivergedError as error:
        found = explain_lost_labels(error, instruments.step, labels, units)
        if found is None:
            raise
        raise found from error


def forward_args(x: Any, keywords: Mapping[str, Any]) -> ForwardArgs:
    """Return the positional and keyword arguments of a forward pass.

    Args:
        x: one input; a tuple of positional arguments; or a mapping of keyword arguments, as a collator makes
            it.
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


def explain_load_errors(
    load: Callable[[_Engine, Mapping[str, Any]], None],
) -> Callable[[_Engine, Mapping[str, Any]], None]:
    """Decorate a ``load_state_dict`` method.

    A state of another engine raises a `ConfigError` that explains what to do.
    """

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


@contextmanager
def restore_buffers_after_skips(model: nn.Module, instruments: Instruments) -> Generator[None]:
    """Run a step, and restore the buffers that a skipped batch has spoilt.

    A batch with values that are not finite spoils the running statistics of BatchNorm. If the guard has
    skipped something in the block, each buffer that is not finite any more gets the value that it had before.
    Where the guard stops the run instead of skipping, nothing is done.
    """
    guard = instruments.guard
    if guard is None or not guard.skip:
        yield
        return
    # Detached clones, since the buffers themselves are changed in place.
    kept = [(b, b.detach().clone()) for b in model.buffers() if b.is_floating_point()]
    before = guard.skipped.total()
    try:
        yield
    finally:
        if guard.skipped.total() > before:
            with torch.no_grad():
                for b, was in kept:
                    if not is_finite(b) and is_finite(was):
                        b.copy_(was)
