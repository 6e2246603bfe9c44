"""Which input model makes complete unlock learn within a few thousand steps: the record of what was tried.

Measured on 5,000 held-out training examples: the settings of `methods.METHODS` were selected here, and the
test set had no part in it.
"""

from __future__ import annotations

from collections.abc import Sequence

from .config import Cell, RuleSettings, RunConfig, Schedule

__all__ = ["TIERS", "VARIANTS", "configs"]

#: One thing varied at a time, around the first setting that was tried; then what looked best.
VARIANTS: tuple[tuple[str, RuleSettings], ...] = (
    ("cdni_unlock", RuleSettings()),
    ("cdni_unlock", RuleSettings(lr_factor=3.0)),
    ("cdni_unlock", RuleSettings(lr_factor=10.0)),
    ("cdni_unlock", RuleSettings(input_hidden=())),
    ("dni_unlock", RuleSettings(hidden=(2048,), lr_factor=10.0)),
    ("dni_unlock", RuleSettings(hidden=(2048,), lr_factor=30.0, input_lr_factor=3.0)),
    ("dni_unlock", RuleSettings(hidden=(2048,), lr_factor=10.0, input_lr_factor=3.0)),
    ("dni_unlock", RuleSettings(hidden=(2048,), lr_factor=10.0, input_lr_factor=3.0, input_hidden=(1024,))),
    ("dni_unlock", RuleSettings(hidden=(1024,), lr_factor=3.0)),
)

_SCHEDULES = {
    "smoke": ("mnist-10k", Schedule(steps=60, batch_size=64, eval_every=30), 2000),
    "quick": ("mnist", Schedule(steps=6000, eval_every=1000), 5000),
}
TIERS = tuple(_SCHEDULES)


def configs(tier: str, seeds: Sequence[int], device: str, data_dir: str | None) -> list[RunConfig]:
    """Return the runs of the search; tier ``smoke`` or ``quick``."""
    data, schedule, hold_out = _SCHEDULES[tier]
    return [
        RunConfig(
            "unlock_search",
            tier,
            method,
            seed,
            Cell(data),
            schedule,
            rule,
            hold_out=hold_out,
            monitor_every=50,
            device=device,
            precision="bfloat16",
            data_dir=data_dir,
        )
        for method, rule in VARIANTS
        for seed in seeds
    ]
