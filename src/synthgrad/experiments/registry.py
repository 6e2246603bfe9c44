"""The experiments and benchmarks by name. Add one here, it is listed and run; in `cli.names`, it is completed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..core import ConfigError
from . import compare, dni_search
from .bench import Benchmark
from .bench_memory import MemoryBench
from .bench_step import StepBench
from .config import RunConfig

__all__ = ["BENCHMARKS", "EXPERIMENTS", "Experiment", "benchmark_named", "experiment_named"]

MakeConfigs = Callable[[str, Sequence[int], str, str | None], list[RunConfig]]


@dataclass(frozen=True, slots=True)
class Experiment:
    """An experiment.

    Attributes:
        name, about: as listed.
        configs: takes tier, seeds, device and data directory; returns the runs.
        tiers: the tiers that it has.
    """

    name: str
    about: str
    configs: MakeConfigs
    tiers: tuple[str, ...]


def _compare(tier: str, seeds: Sequence[int], device: str, data_dir: str | None) -> list[RunConfig]:
    data = "mnist-10k" if tier == "smoke" else "mnist"
    return compare.configs(tier, data, seeds=seeds, device=device, data_dir=data_dir)


EXPERIMENTS = {
    e.name: e
    for e in (
        Experiment(
            "compare", "backprop against decoupled methods on MNIST (Bisong 2017)", _compare, compare.TIERS
        ),
        Experiment(
            "dni_search",
            "which M makes unconditioned DNI learn soonest, on held-out data",
            dni_search.configs,
            dni_search.TIERS,
        ),
    )
}

_BENCHMARKS: tuple[Benchmark, ...] = (StepBench(), MemoryBench())
BENCHMARKS = {b.name: b for b in _BENCHMARKS}


def benchmark_named(name: str) -> Benchmark:
    """Return a benchmark.

    Raises:
        ConfigError: if there is none of that name.
    """
    if name not in BENCHMARKS:
        raise ConfigError(f"benchmark '{name}' is unknown; accepted: {', '.join(BENCHMARKS)}")
    return BENCHMARKS[name]


def experiment_named(name: str, tier: str) -> Experiment:
    """Return an experiment that has the tier.

    Raises:
        ConfigError: if there is none of that name, or it has no such tier.
    """
    if name not in EXPERIMENTS:
        raise ConfigError(f"experiment '{name}' is unknown; accepted: {', '.join(EXPERIMENTS)}")
    experiment = EXPERIMENTS[name]
    if tier not in experiment.tiers:
        raise ConfigError(
            f"experiment '{name}' has no tier '{tier}'; accepted: {', '.join(experiment.tiers)}"
        )
    return experiment
