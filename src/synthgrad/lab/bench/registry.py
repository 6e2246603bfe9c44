"""The benchmarks by name."""

from __future__ import annotations

from ...core import ConfigError
from .base import Benchmark
from .layer_parallel import LayerParallelBench
from .memory.bench import MemoryBench
from .networks import NetworksBench
from .pipeline import PipelineBench
from .step import StepBench
from .survival.damage import DamageBench
from .survival.faults import FaultsBench
from .survival.kills import KillsBench
from .unroll import UnrollBench

__all__ = ["BENCHMARKS", "benchmark_named"]

_BENCHMARKS: tuple[Benchmark, ...] = (
    StepBench(),
    MemoryBench(),
    UnrollBench(),
    LayerParallelBench(),
    PipelineBench(),
    NetworksBench(),
    KillsBench(),
    DamageBench(),
    FaultsBench(),
)
BENCHMARKS = {b.name: b for b in _BENCHMARKS}


def benchmark_named(name: str) -> Benchmark:
    """Return a benchmark.

    Raises:
        ConfigError: if there is none of that name.
    """
    if name not in BENCHMARKS:
        raise ConfigError(f"benchmark '{name}' is unknown; accepted: {', '.join(BENCHMARKS)}")
    return BENCHMARKS[name]
