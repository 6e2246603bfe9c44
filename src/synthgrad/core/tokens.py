"""What was wrong with token ids or labels: found out once a step has failed, so that no step pays for a check."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from types import FrameType
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn

from .errors import ConfigError, ContextError, DivergedError, ShapeError, SynthgradError
from .units import Units

__all__ = ["explain_failure", "explain_lost_labels", "explained"]


@contextmanager
def explained(net: nn.Module | None = None) -> Generator[None]:
    """Run a forward pass or a criterion, and say in one line what PyTorch says about ids, labels and their shapes.

    Args:
        net: the network, whose embeddings are named; None if it is not at hand.

    Raises:
        ConfigError: for an id that an embedding does not have.
        ContextError: for a label that the criterion does not have.
        ShapeError: for labels that do not have the shape of the scores.
    """
    try:
        yield
    except (IndexError, ValueError, RuntimeError) as error:
        found = explain_failure(error, net)
        if found is None:
            raise
        raise found from error


def explain_failure(error: Exception, net: nn.Module | None = None) -> SynthgradError | None:
    """Return the error to raise for one that PyTorch has raised about ids or labels; None for any other.

    Args:
        error: that was raised, with its traceback.
        net: see `explained`.
    """
    if isinstance(error, SynthgradError):
        return None
    step = error.__traceback__
    while step is not None:
        frame, step = step.tb_frame, step.tb_next
        if frame.f_globals.get("__name__") != "torch.nn.functional":
            continue
        try:
            if frame.f_code.co_name == "embedding":
                return _of_embedding(frame, net)
            if frame.f_code.co_name in ("cross_entropy", "nll_loss"):
                return _of_criterion(frame, str(error))
        except RuntimeError:  # values that cannot be read, as within torch.vmap
            return None
    return None


def _of_embedding(frame: FrameType, net: nn.Module | None) -> SynthgradError | None:
    ids, table = frame.f_locals.get("input"), frame.f_locals.get("weight")
    # An accelerator that has met a wrong index answers no more questions.
    if not (_are_whole(ids) and isinstance(table, Tensor) and ids.numel() and ids.is_cpu):
        return None
    low, high, rows = int(ids.min()), int(ids.max()), len(table)
    if low >= 0 and high < rows:
        return None
    named = (
        [] if net is None else [n.removesuffix(".weight") for n, p in net.named_parameters() if p is table]
    )
    return ConfigError(
        f"got ids from {low} to {high}, of shape {tuple(ids.shape)}, for the embedding{f' {named[0]!r}' if named else ''} "
        f"of {rows} rows, expected 0 to {rows - 1}; give the network ids of its own vocabulary, or make it larger"
    )


def _of_criterion(frame: FrameType, said: str) -> SynthgradError | None:
    scores, target = frame.f_locals.get("input"), frame.f_locals.get("target")
    ignored = frame.f_locals.get("ignore_index", -100)
    if not (isinstance(scores, Tensor) and scores.ndim and _are_whole(target)):
        return None
    at = 0 if scores.ndim == 1 else 1  # the dimension of the classes
    expected, classes = (*scores.shape[:at], *scores.shape[at + 1 :]), scores.shape[at]
    if tuple(target.shape) != expected:
        return ShapeError(
            f"the criterion got labels of shape {tuple(target.shape)} for scores of shape {tuple(scores.shape)}, expected "
            f"{expected}, a label for each position, and the {classes} classes in dimension {at}; give labels (B, T) of the "
            "length of the output"
        )
    if "out of bounds" not in said:
        return None
    return ContextError(
        f"the criterion got labels{_range(target, ignored)} for scores of {classes} classes, expected 0 to {classes - 1}, or "
        f"{ignored} for none; give labels of the network's own vocabulary, or make it larger"
    )


def _range(labels: Tensor, ignored: int) -> str:
    """Say from where to where labels go; nothing where they cannot be read."""
    try:
        known = labels[labels != ignored]
        return f" from {int(known.min())} to {int(known.max())}"
    except RuntimeError:
        return ""


def explain_lost_labels(
    error: DivergedError, step: int, labels: Any, units: Units | None = None
) -> ContextError | None:
    """Return the error to raise where a loss is 0 / 0, because no label of the batch counts; None where some do.

    Args:
        error: that the guard has raised.
        step: the step at hand: on an accelerator, the guard may speak of an earlier one.
        labels: of the step's batch, or whatever else its target is.
        units: which say what label means none, and whether the loss shifts labels; None for -100, unshifted.
    """
    units = Units() if units is None else units
    if error.where != "loss" or error.step != step or not _are_whole(labels):
        return None
    labels = units.counted_in(labels)
    if not labels.numel() or bool((labels != units.ignore_index).any()):
        return None
    return ContextError(
        f"the loss of step {step} is 0 / 0, because no label is left: all {labels.numel()} labels of the batch are "
        f"{units.ignore_index}, which means none; leave such batches out, or let the criterion divide by at least 1"
    )


def _are_whole(value: Any) -> TypeGuard[Tensor]:
    """Return whether a value is a tensor of whole numbers, such as ids or labels."""
    return isinstance(value, Tensor) and not value.is_floating_point() and value.dtype != torch.bool
