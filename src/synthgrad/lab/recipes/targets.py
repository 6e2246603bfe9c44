"""Messages that are targets: difference target propagation, locked, and with rules that predict the targets.

A fully connected network of tanh units on MNIST. Every hidden layer but the first has an inverse that learns, and sends down the
difference to a target (`synthgrad.rules.DifferenceTarget`); the output layer sends its gradient. Without cuts that is difference
target propagation. With cuts after every layer synthetic gradients predict the differences: synthetic targets. Beside them stand
the same with gradients, and with inverses that never learn. All rows have one learning rate; ``targets_search`` asks which suits
each, and has not been run yet::

    synthgrad run targets --seeds 0,1,2 --threads 1 --out DIR
"""

from __future__ import annotations

from dataclasses import replace

from ..training.payloads import FeedForward
from ..training.settings import Schedule
from ._experiment import Experiment, Group, Variant

__all__ = ["EXPERIMENT", "NETWORK", "ROWS", "SCHEDULE", "SMALL"]

#: Method, and what hidden layers send down.
ROWS: tuple[tuple[str, str], ...] = (
    ("backprop", "gradients"),
    ("backprop", "targets"),
    ("backprop", "feedback"),
    ("cdni", "gradients"),
    ("cdni", "targets"),
    ("dni", "gradients"),
    ("dni", "targets"),
    ("no_bprop", "gradients"),
)

NETWORK = FeedForward(data="mnist", layers=5, width=256, normalisation="none", activation="tanh")
SMALL = replace(NETWORK, data="mnist-10k", layers=4, width=32)
SCHEDULE = Schedule(6000, 128, lr=1e-3, milestones=(0.6, 0.8), eval_every=500)


_VARIANTS = [Variant(method, payload={"answers": answers}) for method, answers in ROWS]

EXPERIMENT = Experiment(
    "messages that are targets: difference target propagation, and rules that predict them",
    {
        "smoke": [
            Group(
                SMALL,
                Schedule(40, 64, lr=1e-3, milestones=(), eval_every=20),
                _VARIANTS,
            )
        ],
        "quick": [Group(NETWORK, SCHEDULE, _VARIANTS)],
        "full": [
            Group(
                replace(NETWORK, layers=8),
                Schedule(60_000, 128, lr=1e-3, milestones=(0.6, 0.8), eval_every=2000),
                _VARIANTS,
            )
        ],
    },
)
