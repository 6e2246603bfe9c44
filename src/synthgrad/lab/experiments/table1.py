"""Test errors over data, network and depth (DNI §3.1, Table 1)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from .config import Cell, RunConfig, Schedule
from .feed_forward import FULL, one_run, width_of
from .methods import METHODS as KNOWN

__all__ = ["METHODS", "TIERS", "configs"]

TIERS = ("smoke", "quick", "full")

#: The columns of the paper's table; every other method can be asked for by name.
METHODS = ("backprop", "no_bprop", "dni", "cdni")


@dataclass(frozen=True, slots=True)
class _Network:
    """Rows of the table that share all but their depth."""

    data: str
    arch: str
    layers: tuple[int, ...]
    schedule: Schedule
    width: int
    precision: str = "float32"


def _full(data: str, arch: str, layers: tuple[int, ...]) -> _Network:
    return _Network(data, arch, layers, FULL, width_of(arch, data))


def _small_batches(steps: int, batch_size: int) -> Schedule:
    """Return a schedule of many updates for few images, which is what two cores have time for."""
    return Schedule(steps, batch_size, lr=1e-3, eval_every=steps // 10)


_FCN, _CNN = (3, 4, 5, 6), (3, 4)

# The quick tier raises learning rates and cuts steps, the same for every method of a row; its convolutional
# networks have 32 filters in place of 64 and 128, and smaller batches.
_NETWORKS: dict[str, tuple[_Network, ...]] = {
    "smoke": (
        _Network("mnist-10k", "fcn", (3,), Schedule(steps=80, batch_size=64, lr=1e-3, eval_every=40), 64),
        _Network("mnist-10k", "cnn", (3,), Schedule(steps=40, batch_size=64, lr=3e-3, eval_every=20), 4),
    ),
    "quick": (
        _Network("mnist", "fcn", _FCN, Schedule(steps=6000, lr=3e-4, eval_every=400), 256, "bfloat16"),
        _Network("mnist", "cnn", _CNN, _small_batches(steps=6000, batch_size=64), 32, "bfloat16"),
        _Network("cifar10", "fcn", _FCN, Schedule(steps=1500, lr=3e-4, eval_every=100), 1000, "bfloat16"),
        _Network("cifar10", "cnn", _CNN, _small_batches(steps=3000, batch_size=128), 32, "bfloat16"),
    ),
    "full": (
        _full("mnist", "fcn", _FCN),
        _full("mnist", "cnn", _CNN),
        _full("cifar10", "fcn", _FCN),
        _full("cifar10", "cnn", _CNN),
    ),
}


def configs(tier: str, seeds: Sequence[int], device: str, data_dir: str | None) -> list[RunConfig]:
    """Return the runs of every known method, the paper's first, seed by seed and cell by cell."""
    return list(_runs(tier, seeds, device, data_dir))


def _runs(tier: str, seeds: Sequence[int], device: str, data_dir: str | None) -> Iterator[RunConfig]:
    methods = (*METHODS, *(name for name in KNOWN if name not in METHODS))
    for seed in seeds:
        for network in _NETWORKS[tier]:
            for layers in network.layers:
                cell = Cell(network.data, network.arch, layers, network.width)
                for method in methods:
                    yield one_run(
                        "table1",
                        tier,
                        method,
                        seed,
                        cell,
                        network.schedule,
                        precision=network.precision,
                        device=device,
                        data_dir=data_dir,
                    )
