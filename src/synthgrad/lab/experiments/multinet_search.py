"""Which rule between two networks of different rates learns soonest, on held-out digits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from . import multinet
from .config import Schedule
from .multinet_config import ClockedRun, EdgeSettings

__all__ = ["TIERS", "configs"]

TIERS = ("smoke", "quick")

_HOLD_OUT = {"smoke": 1000, "quick": 5000}


def configs(tier: str, seeds: Sequence[int], device: str, data_dir: str | None) -> list[ClockedRun]:
    """Return half as many blocks of every method, with forms of ``M``, and backpropagation beside them."""
    made: list[ClockedRun] = []
    for run in multinet.configs(tier, seeds, device, data_dir):
        schedule: Schedule = replace(run.schedule, steps=run.schedule.steps // 2)
        base = replace(run, experiment="multinet_search", schedule=schedule, hold_out=_HOLD_OUT[tier])
        width = run.cell.width
        rules = (
            EdgeSettings(),
            EdgeSettings((width,)),
            EdgeSettings((width,), norm=False),
            EdgeSettings(receiver=False),
        )
        made += [base] if run.method == "bptt" else [replace(base, rule=rule) for rule in rules]
    return made
