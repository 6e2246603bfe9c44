"""A convolutional and a recurrent network, each in two stages and, for comparison, in one process."""

from __future__ import annotations

from ..training.payloads import LstmStack
from ..training.settings import Schedule
from ._experiment import Experiment, Group, Variant
from ._papers import feed_forward

__all__ = ["EXPERIMENT", "METHODS"]

METHODS = ("backprop", "cdni")

_VARIANTS = ("backprop", "cdni", Variant("cdni", payload={"engine": "stages"}))


def _images(data: str, filters: int, schedule: Schedule, precision: str = "float32") -> Group:
    payload = feed_forward(data, "cnn", layers=3, width=filters, at=("layer1",))
    return Group(payload, schedule, _VARIANTS, precision=precision)


EXPERIMENT = Experiment(
    "a convolutional network and a stack of LSTMs on two stages, beside one process",
    {
        "smoke": [
            _images("mnist-10k", 4, Schedule(20, 32, lr=3e-3, eval_every=10)),
            Group(
                LstmStack(data="shakespeare-50k", layers=2, width=16, unroll=5, most_valid=1_000),
                Schedule(20, 16, lr=3e-3, milestones=(), eval_every=10),
                _VARIANTS,
            ),
        ],
        "quick": [
            _images("cifar10", 32, Schedule(600, 128, lr=1e-3, eval_every=100), "bfloat16"),
            Group(
                LstmStack(data="ptb", layers=2, width=256, unroll=20, most_valid=50_000),
                Schedule(1000, 64, lr=1e-3, milestones=(), eval_every=100),
                _VARIANTS,
            ),
        ],
        "full": [
            _images("cifar10", 128, Schedule(20_000, 128, lr=1e-3, eval_every=1000)),
            Group(
                LstmStack(data="ptb", layers=2, width=1024, unroll=20),
                Schedule(50_000, 128, lr=3e-4, milestones=(), eval_every=1000),
                _VARIANTS,
            ),
        ],
    },
)
