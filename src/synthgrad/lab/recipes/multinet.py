"""Two networks that run at different rates and count digits (DNI §3.3)."""

from __future__ import annotations

from ..training.payloads import Multirate
from ..training.settings import Schedule
from ._experiment import Experiment, Group

__all__ = ["EXPERIMENT", "METHODS"]

#: Backpropagation, with which the networks wait for each other; and DNI without and with the digits' labels.
METHODS = ("bptt", "dni", "cdni")

EXPERIMENT = Experiment(
    "two networks that tick at different rates count digits, locked and with an interface (DNI §3.3)",
    {
        "smoke": [
            Group(
                Multirate(data="mnist-10k", width=16, period=2),
                Schedule(30, 16, lr=3e-3, milestones=(), eval_every=15),
                METHODS,
            )
        ],
        "quick": [
            Group(
                Multirate(data="mnist", width=128),
                Schedule(2000, 64, lr=1e-3, milestones=(), eval_every=100),
                METHODS,
            )
        ],
        "full": [
            Group(
                Multirate(data="mnist", width=256),
                Schedule(60_000, 256, lr=3e-4, milestones=(), eval_every=1000),
                METHODS,
            )
        ],
    },
)
