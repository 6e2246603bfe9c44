"""``bench networks``: what each engine makes of networks that people bring, beside backpropagation."""

from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import Iterator, Sequence
from functools import cache, partial
from typing import Any

from ....core import ConfigError
from ...records import Record
from ..base import Scope, Setting, blank_line, finish_line
from .entry import Entry
from .exactness import EXACT
from .measure import Job
from .trainers import METHODS, num_processes
from .workers import Workers
from .zoo import ZOO

__all__ = ["METHODS", "NetworksBench"]

_DROPOUT = (
    0.1  # of the lines that have it; engines in one process draw the same random numbers as backpropagation
)
_TIMEOUT_S = 120.0


#: Those of the smallest tier.
_FEW = ("MLP", "TransformerEncoder, padding mask")


def _tiers(arch: str) -> dict[str, Scope]:
    """Return the tiers of one network, or of all; a scope's schedule says which are meant, whatever is recorded."""
    return {
        tier: Scope((), (), (8,), METHODS, rounds=5, arch=arch, schedule=tier, tier=tier)
        for tier in ("smoke", "quick", "full")
    }


class NetworksBench:
    """A zoo of small networks in float64, trained with the true gradient; a round is a step."""

    name = "networks"
    about = "which networks each engine trains exactly as backpropagation does, and which it refuses"
    tiers = _tiers("fcn")
    # Where other benchmarks name a kind of network, this one names one of the zoo.
    networks = {"fcn": tiers, **{name: _tiers(name) for name in ZOO}}

    def settings(self, scope: Scope) -> list[Setting]:
        """Return one setting for each network.

        Raises:
            ConfigError: if a method is unknown, or something is named that the networks of the zoo fix.
        """
        for method in scope.methods:
            if method not in METHODS:
                raise ConfigError(
                    f"method '{method}' is unknown to bench networks; accepted: {', '.join(METHODS)}"
                )
        _check(scope)
        names = _FEW if scope.schedule == "smoke" else tuple(ZOO)
        entries = [ZOO[name] for name in (names if scope.arch == "fcn" else (scope.arch,))]
        crew = {world: Workers(world, scope.threads, _TIMEOUT_S) for world in (1, 2)}
        return [_setting(scope, entry, crew, is_last=entry is entries[-1]) for entry in entries]


def _check(scope: Scope) -> None:
    fixed = {
        "--width": scope.widths,
        "--layers": scope.layers,
        "--learn": scope.learn,
        "--modes compiled": True in scope.compiled,
        "--precision": scope.precision != "float32",  # as it is where nothing is named
    }
    if named := [option for option, value in fixed.items() if value]:
        raise ConfigError(f"bench networks trains networks as they are, in float64; leave out {named[0]}")
    if scope.device != "cpu":
        raise ConfigError(f"bench networks compares on the CPU, not on {scope.device}; use --device cpu")
    if len(scope.batch_sizes) > 1:
        raise ConfigError("bench networks takes one --batch-size: that of its largest batches")


def _setting(scope: Scope, entry: Entry, crew: dict[int, Workers], *, is_last: bool) -> Setting:
    jobs = [
        Job(entry.name, method, dropout, scope.rounds, scope.batch_sizes[0], seed)
        for seed in scope.seeds
        for method in dict.fromkeys(scope.methods)
        for dropout in _dropouts(entry, method)
    ]
    version = _version(entry.library)
    lines = [
        blank_line(
            NetworksBench.name,
            job.method,
            scope,
            job.seed,
            {
                "network": entry.name,
                "library": entry.library,
                "dtype": "float64",
                "dropout": job.dropout,
                "batch_size": job.batch_size,
                "batch_sizes": list(job.sizes),
            },
            {"optimizer": "SGD, momentum", "library_version": version, "exact_up_to": EXACT},
        )
        for job in jobs
    ]
    return Setting(f"networks: {entry.name}", lines, partial(_measured, entry, jobs, lines, crew, is_last))


def _dropouts(entry: Entry, method: str) -> tuple[float, ...]:
    return (0.0, _DROPOUT) if entry.drops and method in ("plain", "in_process") else (0.0,)


def _measured(
    entry: Entry, jobs: Sequence[Job], lines: Sequence[Record], crew: dict[int, Workers], is_last: bool
) -> Iterator[Record]:
    missing = _why_missing(entry.library)
    try:
        for job, line in zip(jobs, lines, strict=True):
            if missing is not None:
                yield _finished(line, {"exact": 0, "refused": 0, "skipped": 1}, missing, failed=False)
                continue
            answer = crew[num_processes(job.method)].ask(job)
            yield _finished(line, answer.metrics, answer.error, failed=answer.failed)
    except BaseException:
        is_last = True
        raise
    finally:
        if is_last:
            for workers in crew.values():
                workers.stop()


def _finished(line: Record, metrics: dict[str, Any], error: str | None, *, failed: bool) -> Record:
    """Return a finished line. A refusal and a network that is not there are results, with their reason as error."""
    done = finish_line(line, "cpu", metrics, error)
    return done if failed else {**done, "status": "ok"}


def _version(library: str) -> str | None:
    """Return the version of a library, None if it is not installed. Part of a line's identity: see ``--resume``."""
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return None


@cache
def _why_missing(library: str) -> str | None:
    """Return why a library cannot be imported, in one line; None if it can."""
    try:
        importlib.import_module(library)
    except Exception as error:  # a wheel that does not fit this PyTorch fails in its own ways
        return f"skipped: {library} cannot be imported ({(str(error).splitlines() or [''])[0]})"
    return None
