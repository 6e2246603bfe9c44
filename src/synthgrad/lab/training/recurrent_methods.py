"""The methods for recurrent networks: one loop, with other rules at the boundary between unrolls."""

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
    """A way to train a recurrent network.

    Attributes:
        name: as given on the command line.
        predicts: does the final state get a synthetic gradient?
        auxiliary: does the network foresee it?
        solves: is it linear and solved for by least squares?
    """

    name: str
    predicts: bool
    auxiliary: bool = False
    solves: bool = False

    @property
    def about(self) -> str:
        """The method in one line."""
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
    """Return a method.

    Raises:
        ConfigError: if there is none of that name.
    """
    if name not in RECURRENT_METHODS:
        raise ConfigError(
            f"method '{name}' is not one of recurrent networks; accepted: {', '.join(RECURRENT_METHODS)}"
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
    """Return what trains a recurrent network of ``tasks`` by a method.

    Args:
        name: of the method.
        settings: of the boundary.
        net: the network, on its device; its state has the batch first.
        criterion: takes outputs and targets of an unroll.
        batch_size: ``B``, for the example of the state.
        width: of the features and of the hidden layers of ``M`` and of the auxiliary head.
        lr: learning rate of Adam.
        reduction: how the criterion reduces over sequences.
        contexts: classes of the context that the task gives to least squares; None for none.
    """
    method = recurrent_method(name)
    state: Any = net.initial_state(batch_size)  # pyright: ignore[reportCallIssue]
    hidden = (width,) if settings.hidden is None else settings.hidden
    foreseeing = (width,) if settings.aux_hidden is None else settings.aux_hidden
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
        future=FutureGradient(width, features, foreseeing, weight=settings.aux_weight)
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
