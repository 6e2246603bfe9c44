"""What makes unconditioned DNI learn within a few thousand steps: the record of what was tried.

Measured on 5,000 held-out training examples: the settings of `methods.METHODS` were selected here, and
the test set had no part in it.
"""

from __future__ import annotations

from collections.abc import Sequence

from .config import Cell, RuleSettings, RunConfig, Schedule

__all__ = ["TIERS", "VARIANTS", "configs"]

#: One thing varied at a time, around the linear ``M`` of equal learning rate; then what looked best.
VARIANTS: tuple[RuleSettings, ...] = (
    RuleSettings(),
    RuleSettings(per_example=False),
    RuleSettings(lr_factor=3.0),
    RuleSettings(lr_factor=10.0),
    RuleSettings(hidden=(256,)),
    RuleSettings(hidden=(256,), norm=False),
    RuleSettings(hidden=(1024,)),
    RuleSettings(hidden=(1024,), lr_factor=3.0),
    RuleSettings(hidden=(1024,), lr_factor=10.0),
    RuleSettings(hidden=(1024, 1024)),
    RuleSettings(hidden=(1024, 1024), lr_factor=3.0),
    RuleSettings(like_layer=True),
    RuleSettings(hidden=(256,), lr_factor=10.0),
    RuleSettings(hidden=(1024,), lr_factor=30.0),
    RuleSettings(hidden=(2048,), lr_factor=10.0),
    RuleSettings(hidden=(1024,), norm=False, lr_factor=10.0),
    RuleSettings(hidden=(1024,), lr_factor=100.0),
    RuleSettings(hidden=(2048,), lr_factor=30.0),
    RuleSettings(lr_factor=30.0),
    RuleSettings(hidden=(1024,), lr_factor=30.0, constant_lr=True),
    RuleSettings(hidden=(2048,), lr_factor=30.0, constant_lr=True),
)

_SCHEDULES = {
    "smoke": ("mnist-10k", Schedule(steps=60, eval_every=30), 2000),
    "quick": ("mnist", Schedule(steps=6000, eval_every=1000), 5000),
}
TIERS = tuple(_SCHEDULES)


def configs(tier: str, seeds: Sequence[int], device: str, data_dir: str | None) -> list[RunConfig]:
    """Return the runs of the search; tier ``smoke`` or ``quick``."""
    data, schedule, hold_out = _SCHEDULES[tier]
    return [
        RunConfig(
            "dni_search",
            tier,
            "dni",
            seed,
            Cell(data),
            schedule,
            rule,
            hold_out=hold_out,
            monitor_every=50,
            device=device,
            data_dir=data_dir,
        )
        for rule in VARIANTS
        for seed in seeds
    ]
