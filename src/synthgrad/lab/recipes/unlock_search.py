"""Which input model makes complete unlock learn within a few thousand steps: the record of what was tried.

Measured on 5,000 held-out training examples: the settings of `training.methods.METHODS` were selected here, and the
test set had no part in it.
"""

from __future__ import annotations

from ..training.payloads import FeedForward
from ..training.settings import RuleSettings, Schedule
from ._experiment import Experiment, Group, Variant

__all__ = ["EXPERIMENT"]

#: One thing varied at a time, around the first setting that was tried; then what looked best.
_VARIANTS = (
    Variant("cdni_unlock", RuleSettings()),
    Variant("cdni_unlock", RuleSettings(lr_factor=3.0)),
    Variant("cdni_unlock", RuleSettings(lr_factor=10.0)),
    Variant("cdni_unlock", RuleSettings(input_hidden=())),
    Variant("dni_unlock", RuleSettings(hidden=(2048,), lr_factor=10.0)),
    Variant("dni_unlock", RuleSettings(hidden=(2048,), lr_factor=30.0, input_lr_factor=3.0)),
    Variant("dni_unlock", RuleSettings(hidden=(2048,), lr_factor=10.0, input_lr_factor=3.0)),
    Variant(
        "dni_unlock", RuleSettings(hidden=(2048,), lr_factor=10.0, input_lr_factor=3.0, input_hidden=(1024,))
    ),
    Variant("dni_unlock", RuleSettings(hidden=(1024,), lr_factor=3.0)),
)

EXPERIMENT = Experiment(
    "which input model makes complete unlock learn soonest, on held-out data",
    {
        "smoke": [
            Group(
                FeedForward(data="mnist-10k", hold_out=2000, monitor_every=50),
                Schedule(steps=60, batch_size=64, eval_every=30),
                _VARIANTS,
                precision="bfloat16",
            )
        ],
        "quick": [
            Group(
                FeedForward(data="mnist", hold_out=5000, monitor_every=50),
                Schedule(steps=6000, eval_every=1000),
                _VARIANTS,
                precision="bfloat16",
            )
        ],
    },
)
