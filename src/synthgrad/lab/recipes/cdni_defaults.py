"""cDNI with its defaults against backpropagation, on networks of many kinds (no experiment of a paper)."""

from __future__ import annotations

from ..training.settings import RuleSettings
from ._any_network import NETWORKS, networks
from ._experiment import Experiment, Variant

__all__ = ["EXPERIMENT"]

#: Backpropagation, cDNI as it is, and cDNI with a table that the optimizer learns, the default of version 0.1.
_VARIANTS = ("backprop", "cdni", Variant("cdni", RuleSettings()))

EXPERIMENT = Experiment(
    "cDNI with its defaults against backprop, on fully connected networks of many kinds",
    {
        "smoke": networks(_VARIANTS, 30, 15, of=NETWORKS[1:2]),
        "quick": networks(_VARIANTS, 1500, 100),
    },
)
