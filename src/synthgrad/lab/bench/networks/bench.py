"""``bench networks``: networks that users bring, trained by each engine and by backpropagation."""

from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from ..base import Bench, Figures
from ..declarations import NETWORKS_BENCH, NetworksScope
from .crew import Crew
from .entry import Entry
from .exactness import EXACT
from .measure import Case
from .trainers import num_processes
from .zoo import ZOO

__all__ = ["BENCHMARK", "NetworksBench"]

#: Of the lines that have it. Engines in one process draw the same random numbers as backpropagation.
_DROPOUT = 0.1
_TIMEOUT_S = 120.0


@dataclass(frozen=True, slots=True)
class Trial:
    """A network of the zoo, and the seed that it is tried with."""

    entry: Entry
    seed: int


class NetworksBench(Bench[NetworksScope, Trial, Case]):
    """A zoo of small networks in float64, trained with the true gradient; a round is a step."""

    declared = NETWORKS_BENCH
    optimizer = "SGD, momentum"

    def __init__(self) -> None:
        self._crews: dict[int, Crew] = {}

    def sizes(self, scope: NetworksScope) -> Iterable[Trial]:
        names = scope.names if scope.arch is None else (scope.arch,)
        return [Trial(ZOO[name], seed) for name in names for seed in scope.seeds]

    def cases(self, scope: NetworksScope, size: Trial) -> Sequence[Case]:
        return [
            Case(size.entry.name, method, dropout, scope.rounds, scope.batch_size, size.seed)
            for method in dict.fromkeys(scope.methods)
            for dropout in _dropouts(size.entry, method)
        ]

    def cell(self, scope: NetworksScope, size: Trial, case: Case) -> Mapping[str, Any]:
        return {
            "network": case.network,
            "library": size.entry.library,
            "dtype": "float64",
            "dropout": case.dropout,
            "batch_size": case.batch_size,
            "batch_sizes": list(case.sizes),
        }

    def config(self, scope: NetworksScope, size: Trial, case: Case) -> Mapping[str, Any]:
        return {"library_version": _version(size.entry.library), "exact_up_to": EXACT}

    def label(self, scope: NetworksScope, size: Trial) -> str:
        return size.entry.name

    def measure(self, scope: NetworksScope, size: Trial, cases: Sequence[Case]) -> Iterator[Figures]:
        missing = _why_missing(size.entry.library)
        for case in cases:
            if missing is not None:
                yield Figures({"exact": 0, "refused": 0, "skipped": 1}, missing, failed=False)
                continue
            answer = self._crew(num_processes(case.method), scope.threads).ask(case)
            # A refusal is a result, with its reason as error.
            yield Figures(answer.metrics, answer.error, failed=answer.failed)

    def close(self) -> None:
        crews, self._crews = self._crews, {}
        for crew in crews.values():
            crew.stop()

    def _crew(self, world: int, threads: int) -> Crew:
        """Return processes that serve all networks of a sweep, which load PyTorch once."""
        if world not in self._crews:
            self._crews[world] = Crew(world, threads, _TIMEOUT_S)
        return self._crews[world]


def _dropouts(entry: Entry, method: str) -> tuple[float, ...]:
    return (0.0, _DROPOUT) if entry.drops and method in ("plain", "in_process") else (0.0,)


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


BENCHMARK = NetworksBench()
