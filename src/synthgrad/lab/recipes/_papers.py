"""What the feed-forward experiments share: the schedule and the widths of the paper (DNI §3.1)."""

from __future__ import annotations

from typing import Any

from ..training.payloads import FeedForward
from ..training.settings import Schedule

__all__ = ["FULL", "TARGETS", "WIDTHS", "feed_forward", "width_of"]

#: The paper's schedule: 500,000 steps, learning rate divided by 10 at 300,000 and 400,000.
FULL = Schedule(steps=500_000, lr=3e-5, eval_every=5000)

#: Errors in percent whose first crossing is timed: within reach of backpropagation in the quick tier.
TARGETS = {"mnist-10k": 8.0, "mnist": 3.0, "cifar10": 55.0}

#: Hidden units or filters of the paper's networks; the entry ``""`` serves for all other data.
WIDTHS = {"fcn": {"cifar10": 1000, "": 256}, "cnn": {"cifar10": 128, "": 64}}


def width_of(arch: str, data: str) -> int:
    """Return the hidden units, or filters, of the paper's network for a data set."""
    return WIDTHS[arch].get(data, WIDTHS[arch][""])


def feed_forward(data: str, arch: str = "fcn", **fields: Any) -> FeedForward:
    """Return a payload with the target of its data set."""
    fields.setdefault("target_error_pct", TARGETS.get(data, 5.0))
    return FeedForward(data=data, arch=arch, **fields)
