"""Search for the learning rate of every row of ``targets``, on 5,000 held-out training examples and a third of the steps."""

from __future__ import annotations

from dataclasses import replace

from ._experiment import Experiment, Group, Variant
from .targets import NETWORK, ROWS, SCHEDULE, SMALL

__all__ = ["EXPERIMENT"]

_RATES = (1e-4, 3e-4, 1e-3, 3e-3)

_VARIANTS = [
    Variant(method, payload={"answers": answers}, schedule={"lr": lr})
    for method, answers in ROWS
    for lr in _RATES
]

EXPERIMENT = Experiment(
    "which learning rate suits each row of targets, on held-out data",
    {
        "smoke": [
            Group(
                replace(SMALL, hold_out=2000),
                replace(SCHEDULE, steps=40, batch_size=64, eval_every=20),
                _VARIANTS,
            )
        ],
        "quick": [
            Group(
                replace(NETWORK, hold_out=5000),
                replace(SCHEDULE, steps=2000, eval_every=500),
                _VARIANTS,
            )
        ],
    },
)
