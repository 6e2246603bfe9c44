"""Complete unlock: modules that wait neither for gradients nor for inputs (DNI §3.1)."""

from __future__ import annotations

from ..training.settings import Schedule
from ._experiment import Experiment, Group
from ._papers import FULL, LEARNED_TABLE, feed_forward

__all__ = ["EXPERIMENT", "METHODS"]

METHODS = ("backprop", "dni", "cdni", "dni_unlock", "cdni_unlock")

_VARIANTS = ("backprop", "dni", LEARNED_TABLE, "dni_unlock", "cdni_unlock")

EXPERIMENT = Experiment(
    "complete unlock: synthetic inputs as well as gradients, with and without labels",
    {
        "smoke": [Group(feed_forward("mnist-10k"), Schedule(300, 128, lr=1e-3, eval_every=100), _VARIANTS)],
        "quick": [
            Group(
                feed_forward("mnist"),
                Schedule(6000, lr=3e-4, eval_every=400),
                _VARIANTS,
                precision="bfloat16",
            )
        ],
        "full": [Group(feed_forward("mnist"), FULL, _VARIANTS)],
    },
)
