"""Repeat Copy with unrolls of several lengths: the longest sequence that is copied repeatedly (DNI §3.2)."""

from __future__ import annotations

from ..training.settings import BoundarySettings
from ._copying import tiers
from ._experiment import Experiment

__all__ = ["EXPERIMENT"]

#: Chosen on seed 0. With the settings of Copy, and rows that begin one after the other, the network falls back to
#: guessing at this learning rate as soon as sequences are longer than 19.
_RULE = BoundarySettings(alpha=1.0)

EXPERIMENT = Experiment(
    "how long a sequence is copied several times, over the length of unrolls (DNI, Repeat Copy)",
    tiers("repeat_copy", _RULE, {3: 8_000, 5: 8_000}, spread=1),
)
