"""Copy with unrolls of several lengths: the longest sequence that is copied (DNI §3.2)."""

from __future__ import annotations

from ._copying import CHOSEN, tiers
from ._experiment import Experiment

__all__ = ["EXPERIMENT"]

EXPERIMENT = Experiment(
    "how long a sequence is copied, over the length of unrolls (DNI, Copy)",
    # At T = 5 sequences still became longer after 10,000 batches; those runs are in the records too.
    tiers("copy", CHOSEN, {3: 10_000, 5: 20_000}),
)
