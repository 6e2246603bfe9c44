"""Fully connected networks of many kinds, on which defaults are chosen and confirmed."""

from __future__ import annotations

from collections.abc import Sequence

from ..training.payloads import FeedForward
from ..training.settings import Schedule
from ._experiment import Group, Variant

__all__ = ["NETWORKS", "networks"]

#: Normalisation, activation, layers, width and learning rate; a cut is after every layer.
NETWORKS: tuple[tuple[str, str, int, int, float], ...] = (
    ("layer", "gelu", 5, 256, 1e-3),
    ("layer", "relu", 6, 64, 3e-3),
    ("layer", "gelu", 3, 512, 3e-4),
    ("none", "relu", 6, 256, 3e-3),
    ("none", "gelu", 4, 512, 3e-3),
    ("none", "relu", 5, 128, 1e-3),
    ("none", "gelu", 6, 64, 3e-4),
    ("batch", "relu", 5, 256, 1e-3),
    ("batch", "gelu", 6, 64, 3e-4),
    ("batch", "relu", 4, 512, 3e-3),
)


def networks(
    variants: Sequence[Variant | str],
    steps: int,
    eval_every: int,
    *,
    hold_out: int = 0,
    of: Sequence[tuple[str, str, int, int, float]] = NETWORKS,
) -> list[Group]:
    """Return a group for each network, trained on mnist-10k with Adam at a constant rate and batches of 128.

    Args:
        variants: the methods.
        steps: number of batches.
        eval_every: number of steps between evaluations.
        hold_out: number of training examples to evaluate on, in place of the test set.
        of: the networks.
    """
    return [
        Group(
            FeedForward(
                data="mnist-10k",
                normalisation=norm,
                activation=activation,
                layers=layers,
                width=width,
                hold_out=hold_out,
                monitor_every=0,
            ),
            Schedule(steps, 128, lr=lr, milestones=(), eval_every=eval_every),
            variants,
        )
        for norm, activation, layers, width, lr in of
    ]
