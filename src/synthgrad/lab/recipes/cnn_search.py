"""Search for settings with which rules train a convolutional network within a few hundred steps.

The settings of `training.methods.METHODS` for convolutional networks were chosen by this search, on 5,000 held-out
training examples. The test set was not used.
"""

from __future__ import annotations

from ..training.payloads import FeedForward
from ..training.settings import RuleSettings, Schedule
from ._experiment import Experiment, Group, Variant

__all__ = ["EXPERIMENT"]

#: Changes of one setting of a linear ``M`` or head with the network's learning rate; then combinations of the best.
_VARIANTS = (
    Variant("backprop", RuleSettings()),
    Variant("local_loss", RuleSettings()),
    Variant("local_loss", RuleSettings(pool=4)),
    Variant("local_loss", RuleSettings(head="convolutional")),
    Variant("local_loss", RuleSettings(head="convolutional", pool=4)),
    Variant("cdni", RuleSettings()),
    Variant("cdni", RuleSettings(lr_factor=10.0)),
    Variant("cdni", RuleSettings(kernel=3)),
    Variant("cdni", RuleSettings(hidden=(32,), kernel=3)),
    Variant("cdni", RuleSettings(hidden=(32,), kernel=3, lr_factor=3.0)),
    Variant("cdni", RuleSettings(hidden=(32,), kernel=3, lr_factor=10.0)),
    Variant("sobolev", RuleSettings()),
    Variant("sobolev", RuleSettings(pool=4)),
    Variant("sobolev", RuleSettings(pool=4, lr_factor=3.0)),
    Variant("sobolev", RuleSettings(pool=4, lr_factor=10.0)),
    Variant("sobolev", RuleSettings(pool=4, critic="value")),
    Variant("sobolev", RuleSettings(pool=4, head="convolutional")),
    Variant("dni", RuleSettings()),
    Variant("dni", RuleSettings(lr_factor=10.0)),
    Variant("dni", RuleSettings(hidden=(32,), kernel=3)),
    Variant("dni", RuleSettings(hidden=(32,), kernel=3, lr_factor=10.0)),
    Variant("cdni", RuleSettings(kernel=3, maps=True)),
    Variant("cdni", RuleSettings(kernel=3, maps=True, lr_factor=3.0)),
    Variant("cdni", RuleSettings(kernel=3, maps=True, lr_factor=10.0)),
    Variant("cdni", RuleSettings(kernel=1, maps=True)),
    Variant("cdni", RuleSettings(kernel=1, maps=True, lr_factor=0.3)),
    Variant("cdni", RuleSettings(kernel=1)),
    Variant("cdni", RuleSettings(hidden=(32,), kernel=3, maps=True)),
    Variant("sobolev", RuleSettings(head="convolutional")),
    Variant("sobolev", RuleSettings(pool=4, head="convolutional", lr_factor=10.0)),
    Variant("dni", RuleSettings(kernel=3)),
)

EXPERIMENT = Experiment(
    "which settings make rules learn a convolutional network soonest, on held-out data",
    {
        "smoke": [
            Group(
                FeedForward(data="mnist-10k", arch="cnn", layers=3, width=4, hold_out=2000, monitor_every=50),
                Schedule(steps=30, batch_size=64, lr=3e-3, eval_every=15),
                _VARIANTS,
                precision="bfloat16",
            )
        ],
        "quick": [
            Group(
                FeedForward(data="cifar10", arch="cnn", layers=3, width=32, hold_out=5000, monitor_every=50),
                Schedule(700, batch_size=128, lr=1e-3, eval_every=350),
                _VARIANTS,
                precision="bfloat16",
            )
        ],
    },
)
