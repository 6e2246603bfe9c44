"""Stale gradients over decay rates, beside synthetic gradients: is the prediction worth its price?"""

from __future__ import annotations

from collections.abc import Sequence

from .config import Cell, RuleSettings, RunConfig, Schedule
from .feed_forward import FULL, one_run

__all__ = ["DECAYS", "TIERS", "configs"]

#: Decay of the average of an example's messages; 0 keeps the last one only.
DECAYS = (0.0, 0.5, 0.9)

_SCHEDULES = {
    # A message is of use from the second epoch on: batches that see the embedded images twice.
    "smoke": ("mnist-10k", Schedule(steps=60, batch_size=500, lr=1e-3, eval_every=30), "float32"),
    "quick": ("mnist", Schedule(steps=6000, lr=3e-4, eval_every=400), "bfloat16"),
    "full": ("mnist", FULL, "float32"),
}
TIERS = tuple(_SCHEDULES)

#: Method, settings, engine. An average of messages that are themselves made of stale gradients further up is one
#: thing, an average of true gradients, which take a locked pass, another: both are here.
_VARIANTS: tuple[tuple[str, RuleSettings | None, str], ...] = (
    ("backprop", None, "plain"),
    ("dni", None, "in-process"),
    ("cdni", None, "in-process"),
    *(("stale", RuleSettings(decay=decay), "in-process") for decay in DECAYS),
    *(("stale", RuleSettings(decay=decay, true_messages=True), "plain") for decay in DECAYS),
    ("cdni", RuleSettings(true_messages=True), "plain"),
)


def configs(tier: str, seeds: Sequence[int], device: str, data_dir: str | None) -> list[RunConfig]:
    """Return the runs: backpropagation, DNI and cDNI, and stale gradients at each decay, seed by seed."""
    data, schedule, precision = _SCHEDULES[tier]
    return [
        one_run(
            "stale",
            tier,
            method,
            seed,
            Cell(data, engine=engine),
            schedule,
            rule,
            precision=precision,
            device=device,
            data_dir=data_dir,
        )
        for seed in seeds
        for method, rule, engine in _VARIANTS
    ]
