"""Backpropagation and decoupled methods over several budgets of steps, with all updates or one update in five.

Each budget has its own schedule, whose learning rate changes at the same fractions of it (Bisong 2017). In the quick and
full tiers the longest budget is the same run as in `comparison`, so records of both have the experiment ``compare``.
"""

from __future__ import annotations

from dataclasses import replace

from ._experiment import Experiment, Group, Variant
from ._papers import LEARNED_TABLE, feed_forward
from .comparison import METHODS, schedules

__all__ = ["EXPERIMENT"]


def _budgets(tier: str, data: str, steps: tuple[int, ...]) -> list[Group]:
    """Return a group for each number of steps; backpropagation makes every update."""
    every = [LEARNED_TABLE if method == LEARNED_TABLE.method else Variant(method) for method in METHODS]
    one_in_five = [replace(v, payload={"update_prob": 0.2}) for v in every if v.method != "backprop"]
    variants = [*every, *one_in_five]
    return [
        Group(feed_forward(data), schedule, variants) for schedule in schedules(tier, data, {"steps": steps})
    ]


EXPERIMENT = Experiment(
    "backprop against decoupled methods on MNIST, several budgets, all updates or one in five (Bisong 2017)",
    {
        "smoke": _budgets("smoke", "mnist-10k", (40, 120)),
        "quick": _budgets("quick", "mnist", (1000, 3000, 6000)),
        "full": _budgets("full", "mnist", (100_000, 300_000, 500_000)),
    },
    recorded_as="compare",
)
