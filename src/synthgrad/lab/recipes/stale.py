"""Stale gradients over decay rates, beside synthetic gradients: is the prediction worth its price?"""

from __future__ import annotations

from ..training.settings import RuleSettings, Schedule
from ._experiment import Experiment, Group, Variant
from ._papers import FULL, feed_forward

__all__ = ["DECAYS", "EXPERIMENT"]

#: Decay of the average of an example's messages; 0 keeps the last one only.
DECAYS = (0.0, 0.5, 0.9)

# An average of messages that are themselves made of stale gradients further up is one thing, an average of true
# gradients, which take a locked pass, another: both are here.
_LOCKED = {"engine": "plain"}
_VARIANTS = (
    *("backprop", "dni", "cdni"),
    *(Variant("stale", RuleSettings(decay=decay)) for decay in DECAYS),
    *(Variant("stale", RuleSettings(decay=decay, true_messages=True), _LOCKED) for decay in DECAYS),
    Variant("cdni", RuleSettings(true_messages=True), _LOCKED),
)

EXPERIMENT = Experiment(
    "stale gradients over decay rates, against DNI and cDNI",
    {
        # A message is of use from the second epoch on: batches that see the embedded images twice.
        "smoke": [Group(feed_forward("mnist-10k"), Schedule(60, 500, lr=1e-3, eval_every=30), _VARIANTS)],
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
