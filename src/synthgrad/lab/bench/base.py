"""What all benchmarks share: a product of sizes, the lines of each, and a sweep that can be stopped and resumed."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from ...core import ConfigError
from ..records import (
    Cell,
    Config,
    Env,
    Metrics,
    Point,
    Record,
    append,
    finished,
    identity,
    locked,
    open_folder,
    read,
)
from ..training.load import Load
from ..training.machine import configure_process, describe_environment
from .declaration import Declaration, Scope

__all__ = [
    "Bench",
    "Figures",
    "Seeded",
    "Setting",
    "Size",
    "benchmark_of",
    "choose",
    "reason_of",
    "sweep",
]

#: Options that may be given without leaving the tier: lines name them, or they say on what and how to measure.
_FREE = (
    *("seeds", "device", "threads", "data_dir"),
    *("methods", "arch", "precision", "optimizer", "learn", "link", "losses", "target_bits"),
)


class Seeded(Protocol):
    """The size of a setting, which has a seed."""

    @property
    def seed(self) -> int: ...


ScopeT = TypeVar("ScopeT", bound=Scope)
SizeT = TypeVar("SizeT", bound=Seeded)
CaseT = TypeVar("CaseT")


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """The size of a feed-forward network and of its batches.

    Attributes:
        seed: seed of weights and data.
        width: units or filters of a hidden layer.
        layers: weight layers, the output layer included.
        batch_size: examples in a batch.
    """

    seed: int
    width: int
    layers: int
    batch_size: int


@dataclass(frozen=True, slots=True)
class Figures:
    """What was measured of one case.

    Attributes:
        metrics: the figures; empty where there are none.
        error: why there are none, or what is wrong with them; None for nothing.
        failed: whether that is a failure; None for whether there is an error.
        curve: measurements on the way.
    """

    metrics: Mapping[str, Any] = field(default_factory=dict[str, Any])
    error: str | None = None
    failed: bool | None = None
    curve: Sequence[Mapping[str, Any]] = ()


@dataclass(frozen=True, slots=True)
class Setting:
    """Lines that are measured together, so that they can be compared.

    Attributes:
        label: a short name for progress.
        lines: their records, all but the figures.
        measure: measures them; returns the finished records, in the order of the lines.
    """

    label: str
    lines: Sequence[Record]
    measure: Callable[[], Iterator[Record]]


class Bench(ABC, Generic[ScopeT, SizeT, CaseT]):
    """A benchmark of sizes, and at each of them cases, which are what the lines measure.

    Attributes:
        declared: name, parameters and tiers.
        axes: by field of a size, the field of the scope that lists its values.
        size: makes a size from a value of each.
        optimizer: as recorded; empty where nothing is trained.
    """

    declared: ClassVar[Declaration]
    axes: ClassVar[Mapping[str, str]] = {
        "seed": "seeds",
        "width": "widths",
        "layers": "layers",
        "batch_size": "batch_sizes",
    }
    size: ClassVar[Callable[..., Any]] = Size
    optimizer: ClassVar[str] = "Adam, fused"

    @property
    def name(self) -> str:
        """The benchmark's name."""
        return self.declared.name

    def settings(self, scope: ScopeT) -> list[Setting]:
        """Return what is to be measured.

        Raises:
            ConfigError: if it cannot be.
        """
        self.check_methods(scope)
        self.check(scope)
        return [self._setting(scope, size) for size in self.sizes(scope)]

    def check_methods(self, scope: ScopeT) -> None:
        """Raise `ConfigError` for a method that the benchmark does not have."""
        option = self.declared.options.get("methods")
        _check_choices(self.name, "method", scope.methods, self.methods(scope) if option else ())

    def methods(self, scope: ScopeT) -> Sequence[str]:
        """Return the names of the methods that can be measured in this scope."""
        return self.declared.options["methods"].choices

    def check(self, scope: ScopeT) -> None:
        """Raise `ConfigError` if something cannot be measured that the options alone allow."""

    def sizes(self, scope: ScopeT) -> Iterable[SizeT]:
        """Return the sizes: every combination of the values that the scope lists."""
        for values in itertools.product(*(getattr(scope, name) for name in self.axes.values())):
            yield type(self).size(**dict(zip(self.axes, values, strict=True)))

    @abstractmethod
    def cases(self, scope: ScopeT, size: SizeT) -> Sequence[CaseT]:
        """Return what is measured at a size, in the order of the lines."""

    def method(self, size: SizeT, case: CaseT) -> str:
        """Return the method of a line."""
        return case if isinstance(case, str) else getattr(case, "method")  # noqa: B009 - a case may be of any type

    @abstractmethod
    def cell(self, scope: ScopeT, size: SizeT, case: CaseT) -> Mapping[str, Any]:
        """Return every parameter of a line."""

    def config(self, scope: ScopeT, size: SizeT, case: CaseT) -> Mapping[str, Any]:
        """Return the settings of a line that are no parameters."""
        return {}

    @abstractmethod
    def label(self, scope: ScopeT, size: SizeT) -> str:
        """Return a short name of a size, for progress."""

    @abstractmethod
    def measure(self, scope: ScopeT, size: SizeT, cases: Sequence[CaseT]) -> Iterator[Figures]:
        """Measure all cases of a size; yield the figures of each, in their order."""

    def close(self) -> None:
        """Let go of what was kept from one setting to the next."""

    def _setting(self, scope: ScopeT, size: SizeT) -> Setting:
        cases = self.cases(scope, size)
        lines = [self._line(scope, size, case) for case in cases]
        label = f"{self.name}: {self.label(scope, size)}"
        return Setting(label, lines, partial(self._records, scope, size, cases, lines))

    def _line(self, scope: ScopeT, size: SizeT, case: CaseT) -> Record:
        """Return the record of a line that is not measured yet."""
        cell = self.cell(scope, size, case)
        trained = {"optimizer": self.optimizer} if self.optimizer else {}
        # The device stands here as well as under `env`: a line of another one is another line.
        here = {"rounds": scope.rounds, "device": scope.device}
        return Record(
            experiment=f"bench/{self.name}",
            tier=scope.tier,
            method=self.method(size, case),
            seed=size.seed,
            cell=Cell(cell),
            steps=scope.rounds,
            batch_size=cell.get("batch_size"),
            config=Config({**trained, **self.config(scope, size, case), **here}),
        )

    def _records(
        self, scope: ScopeT, size: SizeT, cases: Sequence[CaseT], lines: Sequence[Record]
    ) -> Iterator[Record]:
        for line, found in zip(lines, self.measure(scope, size, cases), strict=True):
            failed = found.error is not None if found.failed is None else found.failed
            yield replace(
                line,
                metrics=Metrics(dict(found.metrics)),
                curve=tuple(Point(dict(point)) for point in found.curve),
                status="failed" if failed else "ok",
                error=found.error,
                env=Env(describe_environment(scope.device)),
            )


def benchmark_of(declared: Declaration, scope: Scope) -> Bench[Any, Any, Any]:
    """Load and return the code that measures a scope."""
    module = declared.module.format(arch=getattr(scope, "arch", ""))
    return import_module(f".{module}", __package__).BENCHMARK


def reason_of(error: Exception) -> str:
    """Return an error as one line for a record."""
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


def choose(declared: Declaration, tier: str = "quick", **given: Any) -> Any:
    """Return a tier's scope with what the user gave in place of it; None keeps the tier's.

    A sweep that is restricted to some of the tier's own values is still of that tier; with other
    values, or other rounds, it is recorded as ``custom``.

    Raises:
        ConfigError: if the benchmark has no such tier, a value is none of its choices, or nothing is named to measure.
    """
    given = {name: value for name, value in given.items() if value is not None}
    options = declared.options
    for name in [name for name in given if name in options and name != "methods"]:
        values = given[name] if options[name].listed else (given[name],)
        _check_choices(declared.name, declared.flag(name), values, options[name].choices)
    tiers = declared.networks.get(given.get("arch", ""), declared.tiers)
    if tier not in tiers:
        raise ConfigError(f"benchmark '{declared.name}' has no tier '{tier}'; accepted: {', '.join(tiers)}")
    scope = tiers[tier]
    for name, value in given.items():
        if value == ():
            raise ConfigError(f"bench {declared.name}: {name} is empty; name at least one to measure")
        if getattr(scope, name) == ():
            where = f" with --arch {given['arch']}" if "arch" in given else ""
            raise ConfigError(f"bench {declared.name}{where} has no {declared.flag(name)}; leave it out")
    custom = any(_leaves(value, getattr(scope, name)) for name, value in given.items() if name not in _FREE)
    return replace(scope, **given, tier="custom" if custom else tier)


def _leaves(value: Any, usual: Any) -> bool:
    return bool(set(value) - set(usual)) if isinstance(usual, tuple) else value != usual


def _check_choices(bench: str, what: str, values: Iterable[str], choices: Sequence[str]) -> None:
    if choices and (unknown := [value for value in values if value not in choices]):
        raise ConfigError(
            f"{what} '{unknown[0]}' is unknown to bench {bench}; accepted: {', '.join(choices)}"
        )


def sweep(
    benchmark: Bench[Any, Any, Any],
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
        try:
            yield from _measured(settings, scope, path, resume=resume, say=say)
        finally:
            benchmark.close()


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
    configure_process(scope.threads)
    for number, setting in enumerate(settings, 1):
        keys = [identity(line) for line in setting.lines]
        if all(key in done for key in keys):
            if say is not None:
                say(f"{setting.label}: done before, skipped")
            yield from (known[key] for key in keys)
            continue
        if say is not None:
            say(f"{setting.label} ({number} of {len(settings)})")
        load = Load()
        for record in setting.measure():
            if (busy := load.so_far()) is not None:
                record = replace(record, env=Env({**record.env, "other_load": busy}))
            append(path, record)
            yield record
