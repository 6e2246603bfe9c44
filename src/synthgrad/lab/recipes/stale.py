"""Stale gradients with several decay rates, compared with synthetic gradients: is a prediction worth its cost?"""

from __future__ import annotations

from ..training.settings import RuleSettings, Schedule
from ._experiment import Experiment, Group, Variant
from ._papers import FULL, LEARNED_TABLE, feed_forward

__all__ = ["DECAYS", "EXPERIMENT"]

#: Decay of the average over an example's messages; 0 keeps only the last one.
DECAYS = (0.0, 0.5, 0.9)

# Unlocked, a rule averages messages that depend on the stale gradients above it. With a locked pass it averages true
# gradients. Both are measured.
_LOCKED = {"engine": "plain"}
_VARIANTS = (
    *("backprop", "dni", LEARNED_TABLE),
    *(Variant("stale", RuleSettings(decay=decay)) for decay in DECAYS),
    *(Variant("stale", RuleSettings(decay=decay, true_messages=True), _LOCKED) for decay in DECAYS),
    Variant("cdni", RuleSettings(true_messages=True), _LOCKED),
)

EXPERIMENT = Experiment(
    "stale gradients over decay rates, against DNI and cDNI",
    {
        # Stale gradients work from the second epoch on, so these batches go through the embedded images three times.
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
