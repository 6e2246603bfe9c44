"""Copy over the length of unrolls: how long a sequence is copied (DNI §3.2)."""

from __future__ import annotations

from ._copying import CHOSEN, tiers
from ._experiment import Experiment

__all__ = ["EXPERIMENT"]

EXPERIMENT = Experiment(
    "how long a sequence is copied, over the length of unrolls (DNI, Copy)",
    # At T = 5 sequences still got longer at 10,000 batches, which are on record too.
    tiers("copy", CHOSEN, {3: 10_000, 5: 20_000}),
)
