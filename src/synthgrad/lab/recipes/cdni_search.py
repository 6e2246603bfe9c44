"""Search for defaults with which cDNI learns on any fully connected network as soon as backpropagation does.

The form of ``M`` in `synthgrad.SyntheticGradient` and of the method ``cdni`` was chosen by this search, on 2,000 held-out
training examples of mnist-10k. The test set was not used; `cdni_defaults` is the confirmation on it.
"""

from __future__ import annotations

from ..training.settings import RuleSettings
from ._any_network import NETWORKS, networks
from ._experiment import Experiment, Variant

__all__ = ["EXPERIMENT"]

#: The table of the classes learned by the optimizer, at several rates; then means of the classes.
_VARIANTS = (
    Variant("backprop", RuleSettings()),
    Variant("cdni", RuleSettings()),
    Variant("cdni", RuleSettings(lr_factor=10.0)),
    Variant("cdni", RuleSettings(label_rate=1.0)),
    Variant("cdni", RuleSettings(label_rate=1.0, gain=1.0)),
    Variant("cdni", RuleSettings(label_rate=1.0, gain=10.0)),
    Variant("cdni", RuleSettings(label_rate=0.5)),
    Variant("cdni", RuleSettings(label_rate=0.2)),
)

EXPERIMENT = Experiment(
    "which linear M of cDNI learns soonest on networks of many kinds, on held-out data",
    {
        "smoke": networks(_VARIANTS, 30, 15, hold_out=2000, of=NETWORKS[1:2]),
        "quick": networks(_VARIANTS, 500, 100, hold_out=2000),
    },
)
