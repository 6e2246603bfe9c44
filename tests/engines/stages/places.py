"""Where a program of a test runs: a rank in memory, or a process of its own."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from synthgrad.engines.stages.transport import Link, Transport, outcomes_in_memory

__all__ = ["InMemory", "Outcome", "Place"]


@dataclass(frozen=True)
class Place:
    """What a program knows of where it runs.

    Attributes:
        rank: of the program.
        transport: for its engine; None in processes, which have joined a group.
    """

    rank: int
    transport: Transport | None = None

    def sleep(self, seconds: float) -> None:
        (time.sleep if self.transport is None else self.transport.clock.sleep)(seconds)

    def now(self) -> float:
        return time.perf_counter() if self.transport is None else self.transport.clock.now()


@dataclass(frozen=True)
class Outcome:
    """What a function did in one rank.

    Attributes:
        value: what it returned.
        error: ``Type: text`` of what it raised; None if nothing.
        trace: of the error.
    """

    value: Any = None
    error: str | None = None
    trace: str = ""


class InMemory:
    """Ranks that are threads of this process, in virtual time.

    Args:
        num_ranks: ranks.
        links: between neighbours.
    """

    def __init__(self, num_ranks: int, links: Link | list[Link] | None = None) -> None:
        self._num_ranks = num_ranks
        self._links = Link() if links is None else links

    def over(self, *links: Link) -> InMemory:
        """Return the same with other links: one for all, or one for each."""
        return InMemory(self._num_ranks, links[0] if len(links) == 1 else list(links))

    def outcomes(self, function: Callable[..., Any], *args: Any) -> list[Outcome]:
        """Run ``function(place, *args)`` in all ranks; return what became of it, by rank."""

        def program(transport: Transport) -> Any:
            return function(Place(transport.rank, transport), *args)

        return [
            Outcome(o.value, None if o.error is None else f"{type(o.error).__name__}: {o.error}", o.trace)
            for o in outcomes_in_memory(self._num_ranks, program, links=self._links)
        ]

    def run(self, function: Callable[..., Any], *args: Any) -> list[Any]:
        """Run ``function(place, *args)`` in all ranks; return its values, by rank. Fails where one raises."""
        found = self.outcomes(function, *args)
        for rank, outcome in enumerate(found):
            assert outcome.error is None, f"rank {rank}: {outcome.trace}"
        return [outcome.value for outcome in found]
