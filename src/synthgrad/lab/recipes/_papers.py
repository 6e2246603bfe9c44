"""Schedule, widths and targets of the feed-forward experiments (DNI §3.1)."""

from __future__ import annotations

from typing import Any

from ..training.payloads import FeedForward
from ..training.settings import RuleSettings, Schedule
from ._experiment import Variant

__all__ = ["FULL", "LEARNED_TABLE", "TARGETS", "WIDTHS", "feed_forward", "width_of"]

#: cDNI as in the paper: the optimizer learns what the linear ``M`` of a fully connected network adds for each class. The
#: experiments of the papers keep to it; everywhere else ``M`` keeps means of the classes.
LEARNED_TABLE = Variant("cdni", RuleSettings())

#: The paper's schedule: 500,000 steps, with the learning rate divided by 10 after 300,000 and 400,000.
FULL = Schedule(steps=500_000, lr=3e-5, eval_every=5000)

#: Errors in percent; the time until one is reached is recorded. Backpropagation reaches them in the quick tier.
TARGETS = {"mnist-10k": 8.0, "mnist": 3.0, "cifar10": 55.0}

#: Numbers of hidden units or filters in the paper's networks; the entry ``""`` is for all other data sets.
WIDTHS = {"fcn": {"cifar10": 1000, "": 256}, "cnn": {"cifar10": 128, "": 64}}


def width_of(arch: str, data: str) -> int:
    """Return the number of hidden units or filters in the paper's network for a data set."""
    return WIDTHS[arch].get(data, WIDTHS[arch][""])


def feed_forward(data: str, arch: str = "fcn", **fields: Any) -> FeedForward:
    """Return a payload with the target error of its data set."""
    fields.setdefault("target_error_pct", TARGETS.get(data, 5.0))
    return FeedForward(data=data, arch=arch, **fields)
