"""Test errors by data set, network and depth (DNI §3.1, Table 1)."""

from __future__ import annotations

from collections.abc import Sequence

from ..names import METHODS as KNOWN
from ..training.settings import Schedule
from ._experiment import Experiment, Group
from ._papers import FULL, LEARNED_TABLE, feed_forward, width_of

__all__ = ["EXPERIMENT", "METHODS"]

#: Columns of the paper's table, which are run by default; other methods have to be named.
METHODS = ("backprop", "no_bprop", "dni", "cdni")

_VARIANTS = (*METHODS, *(name for name in KNOWN if name not in METHODS))
_OF_FCN = tuple(LEARNED_TABLE if name == LEARNED_TABLE.method else name for name in _VARIANTS)
_FCN, _CNN = (3, 4, 5, 6), (3, 4)


def _depths(
    data: str, arch: str, depths: Sequence[int], schedule: Schedule, width: int, precision: str = "float32"
) -> list[Group]:
    """Return the rows of the table that differ only in depth."""
    variants = _OF_FCN if arch == "fcn" else _VARIANTS
    return [
        Group(feed_forward(data, arch, layers=layers, width=width), schedule, variants, precision=precision)
        for layers in depths
    ]


def _published(data: str, arch: str, depths: Sequence[int]) -> list[Group]:
    return _depths(data, arch, depths, FULL, width_of(arch, data))


def _small_batches(steps: int, batch_size: int) -> Schedule:
    """Return a schedule with small batches: many updates from few images, in the time that two cores have."""
    return Schedule(steps, batch_size, lr=1e-3, eval_every=steps // 10)


# The quick tier has higher learning rates and fewer steps, the same for every method of a row. Its convolutional networks
# have 32 filters instead of 64 and 128, and smaller batches.
EXPERIMENT = Experiment(
    "test errors of FCN and CNN on MNIST and CIFAR-10 over depth (DNI, Table 1)",
    {
        "smoke": [
            *_depths("mnist-10k", "fcn", (3,), Schedule(80, 64, lr=1e-3, eval_every=40), 64),
            *_depths("mnist-10k", "cnn", (3,), Schedule(40, 64, lr=3e-3, eval_every=20), 4),
        ],
        "quick": [
            *_depths("mnist", "fcn", _FCN, Schedule(6000, lr=3e-4, eval_every=400), 256, "bfloat16"),
            *_depths("mnist", "cnn", _CNN, _small_batches(6000, 64), 32, "bfloat16"),
            *_depths("cifar10", "fcn", _FCN, Schedule(1500, lr=3e-4, eval_every=100), 1000, "bfloat16"),
            *_depths("cifar10", "cnn", _CNN, _small_batches(3000, 128), 32, "bfloat16"),
        ],
        "full": [
            *_published("mnist", "fcn", _FCN),
            *_published("mnist", "cnn", _CNN),
            *_published("cifar10", "fcn", _FCN),
            *_published("cifar10", "cnn", _CNN),
        ],
    },
    methods=METHODS,
)
