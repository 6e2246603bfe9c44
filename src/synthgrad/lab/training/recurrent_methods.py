"""Methods for recurrent networks: one engine, with different rules at the boundary between unrolls."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ...core import ConfigError, Rule
from ...engines import Boundary, Criterion, Recurrent
from ...rules import FutureGradient, LeastSquaresGradient, NoBackprop, SyntheticGradient
from ..names import RECURRENT
from .settings import BoundarySettings

__all__ = ["RECURRENT_METHODS", "RecurrentMethod", "make_recurrent", "recurrent_method"]


@dataclass(frozen=True, slots=True)
class RecurrentMethod:
    """A method to train a recurrent network.

    Attributes:
        name: name on the command line.
        predicts: whether the final state of an unroll gets a synthetic gradient.
        auxiliary: whether the network predicts the next synthetic gradient as an auxiliary task.
        solves: whether ``M`` is linear and fitted by least squares.
    """

    name: str
    predicts: bool
    auxiliary: bool = False
    solves: bool = False

    @property
    def about(self) -> str:
        """Description of the method in one line."""
        return RECURRENT[self.name]


RECURRENT_METHODS = {
    m.name: m
    for m in (
        RecurrentMethod("bptt", predicts=False),
        RecurrentMethod("dni", predicts=True),
        RecurrentMethod("dni_aux", predicts=True, auxiliary=True),
        RecurrentMethod("dni_ls", predicts=True, solves=True),
        RecurrentMethod("dni_ls_aux", predicts=True, auxiliary=True, solves=True),
    )
}


def recurrent_method(name: str) -> RecurrentMethod:
    """Return a method by its name.

    Raises:
        ConfigError: if the name is unknown.
    """
    if name not in RECURRENT_METHODS:
        raise ConfigError(
            f"method '{name}' is not a method for recurrent networks; accepted: {', '.join(RECURRENT_METHODS)}"
        )
    return RECURRENT_METHODS[name]


def make_recurrent(
    name: str,
    settings: BoundarySettings,
    net: nn.Module,
    criterion: Criterion,
    *,
    batch_size: int,
    width: int,
    lr: float,
    reduction: Any = "mean",
    contexts: int | None = None,
) -> Recurrent:
    """Build the engine that trains a recurrent network with a method.

    Args:
        name: name of the method.
        settings: settings of the rule between unrolls.
        net: the network, on its device; the tensors of its state have the batch first.
        criterion: loss function of the outputs and targets of an unroll.
        batch_size: ``B``.
        width: size of the network's features, and default width of the hidden layers of ``M`` and the auxiliary head.
        lr: learning rate of Adam.
        reduction: the criterion's reduction over sequences.
        contexts: number of classes of the context for least squares; None for no context.

    Raises:
        ConfigError: if the method is unknown.
    """
    method = recurrent_method(name)
    state: Any = net.initial_state(batch_size)  # pyright: ignore[reportCallIssue]
    hidden = (width,) if settings.hidden is None else settings.hidden
    aux_hidden = (width,) if settings.aux_hidden is None else settings.aux_hidden
    features = sum(part[0].numel() for part in state)
    rule: Rule = NoBackprop()
    if method.solves:
        rule = LeastSquaresGradient(contexts, rate=settings.rate, damping=settings.damping)
    elif method.predicts:
        rule = SyntheticGradient(hidden, norm=settings.norm)
    boundary = Boundary(
        rule,
        state,
        alpha=settings.alpha,
        future=FutureGradient(width, features, aux_hidden, weight=settings.aux_weight)
        if method.auxiliary
        else None,
        reduction=reduction,
        batch_dim=0,
        observe_every=settings.observe_every if method.predicts else 1,
    )
    window = settings.window if method.predicts else 1
    return Recurrent(
        net,
        boundary,
        criterion,
        lambda parameters: torch.optim.Adam(parameters, lr, fused=True),
        rule_options=None if settings.lr_factor == 1 else {"lr": lr * settings.lr_factor},
        window=window,
        mix=settings.mix if window > 1 else 0.0,
        max_norm=settings.max_norm,
    )
