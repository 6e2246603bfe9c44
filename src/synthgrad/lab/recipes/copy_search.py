"""Search for settings with which an LSTM copies long sequences: rule, clipping, learning rate, and start of the rows."""

from __future__ import annotations

from dataclasses import replace

from ..training.payloads import Copying
from ..training.settings import Schedule
from ._copying import CHOSEN
from ._experiment import Experiment, Group, Variant

__all__ = ["EXPERIMENT"]

_FREE = replace(CHOSEN, max_norm=None)
_IN_STEP = {"spread": 1}


def _variants(lr: float) -> tuple[Variant, ...]:
    """Return the variants to try, around a learning rate."""
    faster = {"lr": 3.0 * lr}
    return (
        Variant("bptt"),
        Variant("bptt", _FREE),
        Variant("bptt", schedule=faster),
        Variant("bptt", _FREE, schedule=faster),
        Variant("bptt", payload=_IN_STEP),
        Variant("dni"),
        Variant("dni", _FREE),
        Variant("dni", schedule=faster),
        Variant("dni", payload=_IN_STEP),
        Variant("dni", replace(CHOSEN, alpha=1.0)),
        Variant("dni", replace(CHOSEN, alpha=0.1)),
        Variant("dni", replace(CHOSEN, lr_factor=0.3)),
        Variant("dni", replace(CHOSEN, hidden=None)),
        Variant("dni", replace(CHOSEN, hidden=None, norm=False)),
        Variant("dni_aux"),
        Variant("dni_aux", replace(CHOSEN, aux_weight=0.1)),
        Variant("dni_aux", replace(CHOSEN, aux_hidden=())),
    )


# The shortest unrolls of the experiment Copy, with half as many batches as its quick tier.
EXPERIMENT = Experiment(
    "which settings make an LSTM copy the longest sequences, on a seed that judges nothing else",
    {
        "smoke": [
            Group(
                Copying(data="copy", width=32, unroll=3),
                Schedule(30, 16, lr=3e-3, milestones=(), eval_every=30),
                _variants(3e-3),
                CHOSEN,
            )
        ],
        "quick": [
            Group(
                Copying(data="copy", width=128, unroll=3),
                Schedule(5_000, 64, lr=1e-3, milestones=(), eval_every=500),
                _variants(1e-3),
                CHOSEN,
            )
        ],
    },
)
