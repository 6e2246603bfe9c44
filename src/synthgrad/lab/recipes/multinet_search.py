"""Search for the rule between two networks of different rates that learns soonest, on held-out digits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ..training.settings import EdgeSettings
from . import multinet
from ._experiment import Experiment, Group, Variant

__all__ = ["EXPERIMENT"]


def _searched(groups: object, hold_out: int) -> list[Group]:
    """Return backpropagation and variants of ``M`` for each method, with half as many steps as in the experiment."""
    assert isinstance(groups, Sequence)
    (group,) = groups
    width = group.payload.width
    rules = (
        EdgeSettings(),
        EdgeSettings((width,)),
        EdgeSettings((width,), norm=False),
        EdgeSettings(receiver=False),
    )
    variants = ["bptt", *(Variant(method, rule) for method in ("dni", "cdni") for rule in rules)]
    return [
        replace(
            group,
            payload=replace(group.payload, hold_out=hold_out),
            schedule=replace(group.schedule, steps=group.schedule.steps // 2),
            variants=variants,
        )
    ]


_TIERS = multinet.EXPERIMENT.tiers

EXPERIMENT = Experiment(
    "which rule between networks of different rates learns soonest, on held-out data",
    {"smoke": _searched(_TIERS["smoke"], 1000), "quick": _searched(_TIERS["quick"], 5000)},
)
