"""What all benchmarks share: what to measure, the records, and the loop that can be stopped and resumed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ...core import ConfigError
from ..training.machine import describe, prepare
from ..records import SCHEMA, Record, append, finished, identity, locked, open_folder, read

__all__ = [
    "Benchmark",
    "Scope",
    "Setting",
    "blank_line",
    "choose",
    "finish_line",
    "median_and_spread",
    "sweep",
]


@dataclass(frozen=True, slots=True)
class Scope:
    """What a benchmark measures, and how long.

    Attributes:
        widths, layers, batch_sizes, seeds: every combination is measured.
        methods: names of the methods; the reference is always measured along.
        compiled: with ``torch.compile`` or not, or both; where the benchmark knows the difference.
        rounds: how often the methods take turns.
        seconds: length of a method's turn in a round, about.
        threads, device: where.
        unrolls, horizons: lengths of unrolls and of episodes, where the benchmark measures recurrent networks.
        arch, precision: of the network, where the benchmark knows others than ``fcn`` and ``float32``.
        stages: numbers of processes, where the benchmark divides a network among them.
        link: what is emulated between these, such as ``rtt_ms=50,mbit_s=1000``; None for the loopback device.
        learn: also train to an accuracy, and time that.
        schedule: the tier of ``compare`` that such a training has the schedule of.
        data_dir: directory of data files, or None.
        tier: as recorded.
    """

    widths: Sequence[int]
    layers: Sequence[int]
    batch_sizes: Sequence[int]
    methods: Sequence[str]
    compiled: Sequence[bool] = (False,)
    rounds: int = 15
    seconds: float = 0.2
    seeds: Sequence[int] = (0,)
    threads: int = 1
    device: str = "cpu"
    unrolls: Sequence[int] = ()
    horizons: Sequence[int] = ()
    arch: str = "fcn"
    precision: str = "float32"
    stages: Sequence[int] = ()
    link: str | None = None
    learn: bool = False
    schedule: str = "quick"
    data_dir: str | None = None
    tier: str = "custom"


@dataclass(frozen=True, slots=True)
class Setting:
    """Lines that are measured together, in turns, so that they can be compared.

    Attributes:
        label: a short name for progress.
        lines: their records, all but the figures.
        measure: measures them; returns the finished records, in any order.
    """

    label: str
    lines: Sequence[Record]
    measure: Callable[[], Iterator[Record]]


class Benchmark(Protocol):
    """A benchmark: what a tier of it measures, and how."""

    @property
    def name(self) -> str: ...
    @property
    def about(self) -> str: ...
    @property
    def tiers(self) -> Mapping[str, Scope]: ...
    @property
    def networks(self) -> Mapping[str, Mapping[str, Scope]]:
        """The tiers of each kind of network that is measured; those of ``fcn`` are `tiers`."""
        ...

    def settings(self, scope: Scope) -> list[Setting]:
        """Return what is to be measured; raise `ConfigError` if it cannot be."""
        ...


def choose(benchmark: Benchmark, tier: str, **given: Any) -> Scope:
    """Return a tier's scope with what the user gave in place of it; None keeps the tier's.

    A sweep that is restricted to some of the tier's own values is still of that tier; with other
    values, or other rounds, it is recorded as ``custom``.

    Raises:
        ConfigError: if the benchmark has no such tier, or nothing is named to measure.
    """
    arch = given.get("arch") or "fcn"
    networks = benchmark.networks
    if arch not in networks:
        raise ConfigError(
            f"benchmark '{benchmark.name}' measures no network '{arch}'; accepted: {', '.join(networks)}"
        )
    tiers = networks[arch]
    if tier not in tiers:
        raise ConfigError(f"benchmark '{benchmark.name}' has no tier '{tier}'; accepted: {', '.join(tiers)}")
    scope = tiers[tier]
    kept = {k: v for k, v in given.items() if v is not None}
    if empty := [k for k, v in kept.items() if isinstance(v, tuple | list) and not v]:
        raise ConfigError(f"benchmark '{benchmark.name}': {empty[0]} is empty; name at least one to measure")
    if kept.get("unrolls") and not scope.unrolls:
        raise ConfigError(
            f"benchmark '{benchmark.name}' with network '{arch}' has no unrolls; leave out --unroll"
        )
    if not scope.stages and (named := [name for name in ("stages", "link") if name in kept]):
        raise ConfigError(
            f"benchmark '{benchmark.name}' runs in one process; leave out --{named[0]}, which bench pipeline takes"
        )
    lists = ("widths", "layers", "batch_sizes", "unrolls", "stages", "compiled")
    outside = any(set(kept[k]) - set(getattr(scope, k)) for k in lists if k in kept)
    custom = outside or kept.get("rounds", scope.rounds) != scope.rounds
    return replace(scope, **kept, tier="custom" if custom else tier)


def sweep(
    benchmark: Benchmark,
    scope: Scope,
    out: Path,
    *,
    resume: bool = False,
    say: Callable[[str], None] | None = None,
) -> Iterator[Record]:
    """Measure every setting, append its records to the folder's file and yield them.

    With ``resume`` a setting whose lines are all in the records is not measured again: lines that are
    compared with each other are always of one run.

    Raises:
        ConfigError: if something cannot be measured, or the folder not be written, or another program is writing to it;
            before any work.
    """
    settings = benchmark.settings(scope)
    path = open_folder(out)
    with locked(out):
        yield from _measured(settings, scope, path, resume=resume, say=say)


def _measured(
    settings: Sequence[Setting],
    scope: Scope,
    path: Path,
    *,
    resume: bool,
    say: Callable[[str], None] | None,
) -> Iterator[Record]:
    known = {identity(r): r for r in read(path)[0]} if resume else {}
    done = finished(known.values())
    prepare(scope.threads)
    for number, setting in enumerate(settings, 1):
        keys = [identity(line) for line in setting.lines]
        if all(key in done for key in keys):
            if say is not None:
                say(f"{setting.label}: done before, skipped")
            yield from (known[key] for key in keys)
            continue
        if say is not None:
            say(f"{setting.label} ({number} of {len(settings)})")
        for record in setting.measure():
            append(path, record)
            yield record


def blank_line(
    name: str, method: str, scope: Scope, seed: int, cell: Mapping[str, Any], config: Mapping[str, Any]
) -> Record:
    """Return the record of a line that is not measured yet; ``cell`` names its every parameter."""
    return {
        "schema": SCHEMA,
        "experiment": f"bench/{name}",
        "tier": scope.tier,
        "method": method,
        "seed": seed,
        "cell": dict(cell),
        "steps": scope.rounds,
        "batch_size": cell.get("batch_size"),
        "metrics": {},
        "time": {},
        "curve": [],
        "status": "ok",
        "error": None,
        # The device stands here as well as under `env`: a line of another one is another line.
        "config": {**config, "rounds": scope.rounds, "device": scope.device},
        "env": {},
    }


def finish_line(line: Record, device: str, metrics: Mapping[str, Any], error: str | None) -> Record:
    """Return a line with its figures, or with the reason why it has none."""
    status = "failed" if error is not None else "ok"
    return {**line, "metrics": dict(metrics), "status": status, "error": error, "env": describe(device)}


def median_and_spread(values: Sequence[float]) -> tuple[float, float, float]:
    """Return median, 10th and 90th percentile."""
    p10, median, p90 = (float(v) for v in np.percentile(values, (10, 50, 90)))
    return median, p10, p90
