"""What all feed-forward experiments share: the paper's schedule and widths, and how one run is put together."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from .config import Cell, RuleSettings, RunConfig, Schedule
from .methods import method_named

__all__ = ["FULL", "TARGETS", "WIDTHS", "one_run", "width_of"]

#: The paper's schedule (DNI §3.1): 500,000 steps, learning rate divided by 10 at 300,000 and 400,000.
FULL = Schedule(steps=500_000, lr=3e-5, eval_every=5000)

#: Errors in percent whose first crossing is timed: within reach of backpropagation in the quick tier.
TARGETS = {"mnist-10k": 8.0, "mnist": 3.0, "cifar10": 55.0}

#: Hidden units or filters of the paper's networks (DNI §3.1); the entry ``""`` serves for all other data.
WIDTHS = {"fcn": {"cifar10": 1000, "": 256}, "cnn": {"cifar10": 128, "": 64}}


def width_of(arch: str, data: str) -> int:
    """Return the hidden units, or filters, of the paper's network for a data set."""
    return WIDTHS[arch].get(data, WIDTHS[arch][""])


def one_run(
    experiment: str,
    tier: str,
    method: str,
    seed: int,
    cell: Cell,
    schedule: Schedule,
    rule: RuleSettings | None = None,
    **rest: Any,
) -> RunConfig:
    """Return one run of a method, with the method's own settings of its rule unless others are given.

    Args:
        experiment: name of the experiment.
        tier: name of the tier.
        method: name of the method.
        seed: of weights, batches and draws.
        cell: what is trained on what. A method without a rule has no interfaces: its cell is recorded with
            the plain engine and no cuts.
        schedule: how long and how fast.
        rule: settings of the rule; None for the method's.
        rest: further fields of `RunConfig`.

    Raises:
        ConfigError: if there is no such method.
    """
    known = method_named(method)
    if known.rule is None:
        cell = replace(cell, engine="plain", at=())
    rest = {"target_error_pct": TARGETS[cell.data], **rest}
    settings = known.settings(cell.data, cell.arch) if rule is None else rule
    return RunConfig(experiment, tier, known.name, seed, cell, schedule, settings, **rest)
