"""Complete unlock: modules that wait neither for gradients nor for inputs (DNI §3.1)."""

from __future__ import annotations

from collections.abc import Sequence

from .config import Cell, RunConfig, Schedule
from .feed_forward import FULL, one_run

__all__ = ["METHODS", "TIERS", "configs"]

METHODS = ("backprop", "dni", "cdni", "dni_unlock", "cdni_unlock")

_SCHEDULES = {
    "smoke": ("mnist-10k", Schedule(steps=300, batch_size=128, lr=1e-3, eval_every=100), "float32"),
    "quick": ("mnist", Schedule(steps=6000, lr=3e-4, eval_every=400), "bfloat16"),
    "full": ("mnist", FULL, "float32"),
}
TIERS = tuple(_SCHEDULES)


def configs(tier: str, seeds: Sequence[int], device: str, data_dir: str | None) -> list[RunConfig]:
    """Return the runs: with and without synthetic inputs, with and without label, seed by seed."""
    data, schedule, precision = _SCHEDULES[tier]
    return [
        one_run(
            "unlock",
            tier,
            method,
            seed,
            Cell(data),
            schedule,
            precision=precision,
            device=device,
            data_dir=data_dir,
        )
        for seed in seeds
        for method in METHODS
    ]
