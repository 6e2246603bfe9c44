"""Test error over lag: what is a message worth that comes many steps late?

The network, the cut and the learning rate are those of ``bench pipeline``. Lags are simulated in one process, where
they are exact: on stages they are what the link makes of them, up to the window.
"""

from __future__ import annotations

from collections.abc import Sequence

from .config import Cell, RuleSettings, RunConfig, Schedule
from .feed_forward import one_run

__all__ = ["LAGS", "TIERS", "configs"]

#: Steps between a prediction and the message that corrects it, or the gradient that the module waits for.
LAGS = (0, 1, 4, 16, 64)

_NONE = ()  # the learning rate stays: how soon an error is reached is what is asked
_TIERS = {
    "smoke": (
        Cell("mnist-10k", "fcn", 4, 32, ("layer2",)),
        Schedule(40, 64, lr=1e-3, milestones=_NONE, eval_every=20),
        "float32",
    ),
    "quick": (
        Cell("mnist", "fcn", 9, 512, ("layer4",)),
        Schedule(1500, 256, lr=3e-4, milestones=_NONE, eval_every=100),
        "bfloat16",
    ),
    "full": (
        Cell("mnist", "fcn", 9, 512, ("layer4",)),
        Schedule(20_000, 256, lr=3e-4, milestones=_NONE, eval_every=500),
        "float32",
    ),
}
TIERS = tuple(_TIERS)
_TARGET_PCT = {"smoke": 50.0, "quick": 2.0, "full": 2.0}


def configs(tier: str, seeds: Sequence[int], device: str, data_dir: str | None) -> list[RunConfig]:
    """Return the runs: backpropagation, synthetic gradients at each lag, and delayed gradients, seed by seed."""
    cell, schedule, precision = _TIERS[tier]
    variants: list[tuple[str, RuleSettings | None]] = [("backprop", None)]
    variants += [("cdni", RuleSettings(delay=lag)) for lag in LAGS]
    variants += [("delayed", RuleSettings(delay=lag)) for lag in LAGS if lag]
    return [
        one_run(
            "lag",
            tier,
            method,
            seed,
            cell,
            schedule,
            rule,
            target_error_pct=_TARGET_PCT[tier],
            precision=precision,
            device=device,
            data_dir=data_dir,
        )
        for seed in seeds
        for method, rule in variants
    ]
