"""Search for the input model with which complete unlock learns within a few thousand steps.

The settings of `training.methods.METHODS` were chosen by this search, on 5,000 held-out training examples. The test set
was not used.
"""

from __future__ import annotations

from ..training.payloads import FeedForward
from ..training.settings import RuleSettings, Schedule
from ._experiment import Experiment, Group, Variant

__all__ = ["EXPERIMENT"]

#: Changes of one setting of the first variant; then combinations of the best.
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
