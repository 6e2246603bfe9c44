"""Search for settings with which unconditioned DNI learns within a few thousand steps.

The settings of `training.methods.METHODS` were chosen by this search, on 5,000 held-out training examples. The test set
was not used.
"""

from __future__ import annotations

from ..training.payloads import FeedForward
from ..training.settings import RuleSettings, Schedule
from ._experiment import Experiment, Group, Variant

__all__ = ["EXPERIMENT"]

#: Changes of one setting of a linear ``M`` with the network's learning rate; then combinations of the best.
_VARIANTS = (
    Variant("dni", RuleSettings()),
    Variant("dni", RuleSettings(per_example=False)),
    Variant("dni", RuleSettings(lr_factor=3.0)),
    Variant("dni", RuleSettings(lr_factor=10.0)),
    Variant("dni", RuleSettings(hidden=(256,))),
    Variant("dni", RuleSettings(hidden=(256,), norm=False)),
    Variant("dni", RuleSettings(hidden=(1024,))),
    Variant("dni", RuleSettings(hidden=(1024,), lr_factor=3.0)),
    Variant("dni", RuleSettings(hidden=(1024,), lr_factor=10.0)),
    Variant("dni", RuleSettings(hidden=(1024, 1024))),
    Variant("dni", RuleSettings(hidden=(1024, 1024), lr_factor=3.0)),
    Variant("dni", RuleSettings(like_layer=True)),
    Variant("dni", RuleSettings(hidden=(256,), lr_factor=10.0)),
    Variant("dni", RuleSettings(hidden=(1024,), lr_factor=30.0)),
    Variant("dni", RuleSettings(hidden=(2048,), lr_factor=10.0)),
    Variant("dni", RuleSettings(hidden=(1024,), norm=False, lr_factor=10.0)),
    Variant("dni", RuleSettings(hidden=(1024,), lr_factor=100.0)),
    Variant("dni", RuleSettings(hidden=(2048,), lr_factor=30.0)),
    Variant("dni", RuleSettings(lr_factor=30.0)),
    Variant("dni", RuleSettings(hidden=(1024,), lr_factor=30.0, constant_lr=True)),
    Variant("dni", RuleSettings(hidden=(2048,), lr_factor=30.0, constant_lr=True)),
)

EXPERIMENT = Experiment(
    "which M makes unconditioned DNI learn soonest, on held-out data",
    {
        "smoke": [
            Group(
                FeedForward(data="mnist-10k", hold_out=2000, monitor_every=50),
                Schedule(steps=60, eval_every=30),
                _VARIANTS,
            )
        ],
        "quick": [
            Group(
                FeedForward(data="mnist", hold_out=5000, monitor_every=50),
                Schedule(steps=6000, eval_every=1000),
                _VARIANTS,
            )
        ],
    },
)
