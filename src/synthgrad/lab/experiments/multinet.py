"""Two networks that tick at different rates and count digits (DNI §3.3)."""

from __future__ import annotations

from collections.abc import Sequence

from .config import Schedule
from .multinet_config import ClockedCell, ClockedRun

__all__ = ["METHODS", "TIERS", "configs"]

TIERS = ("smoke", "quick", "full")

#: Backpropagation that locks both networks, and an interface between them, without and with the digits' labels.
METHODS = ("bptt", "dni", "cdni")

_SCHEDULES = {
    "smoke": (
        ClockedCell("mnist-10k", width=16, period=2),
        Schedule(30, 16, lr=3e-3, milestones=(), eval_every=15),
    ),
    "quick": (ClockedCell("mnist", width=128), Schedule(2000, 64, lr=1e-3, milestones=(), eval_every=100)),
    "full": (ClockedCell("mnist", width=256), Schedule(60_000, 256, lr=3e-4, milestones=(), eval_every=1000)),
}


def configs(tier: str, seeds: Sequence[int], device: str, data_dir: str | None) -> list[ClockedRun]:
    """Return the runs, seed by seed."""
    cell, schedule = _SCHEDULES[tier]
    return [
        ClockedRun("multinet", tier, method, seed, cell, schedule, device=device, data_dir=data_dir)
        for seed in seeds
        for method in METHODS
    ]
