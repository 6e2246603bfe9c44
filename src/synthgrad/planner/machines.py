"""Processes that share cores: how fast each computes while others do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

from ..core import ConfigError

__all__ = ["Machine", "Shared"]

P = TypeVar("P")

_EPS = 1e-12


@dataclass(frozen=True, slots=True)
class Machine:
    """Processes that share cores.

    Attributes:
        processes: their numbers.
        cores: how many there are.
        slowdown: of a computation while so many compute at once, besides what sharing of cores costs: for one, for
            two, …; the last holds for more. Caches and memory are shared too.
    """

    processes: tuple[int, ...]
    cores: int = 1
    slowdown: tuple[float, ...] = (1.0,)

    def __post_init__(self) -> None:
        if self.cores < 1 or not self.processes or min(self.slowdown, default=0.0) <= 0:
            raise ConfigError(f"{self}: expected one process or more, one core or more, and slowdowns over 0")

    def speed(self, active: int) -> float:
        """Return the speed of each of ``active`` computations."""
        slower = self.slowdown[min(active, len(self.slowdown)) - 1]
        return min(1.0, self.cores / active) / slower


class Shared(Generic[P]):
    """The computations of processes that share cores: all go on at one speed, which changes when one begins or ends.

    Attributes:
        version: changes when a time that `begin` or `done` has returned no longer holds.
    """

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._left: dict[P, float] = {}
        self._at = 0.0
        self.version = 0

    def begin(self, process: P, seconds: float, now: float) -> float:
        """Let a process compute; return when the next of all is done."""
        self._go_on(now)
        self._left[process] = seconds
        return self._next()

    def done(self, now: float) -> tuple[list[P], float | None]:
        """Return those that are done, and when the next will be."""
        self._go_on(now)
        ended = [p for p, left in self._left.items() if left <= _EPS * max(1.0, now)]
        for p in ended:
            del self._left[p]
        return ended, self._next() if self._left else None

    def _go_on(self, now: float) -> None:
        if self._left:
            speed = self._machine.speed(len(self._left))
            gone = (now - self._at) * speed
            for p in self._left:
                self._left[p] -= gone
        self._at = now

    def _next(self) -> float:
        self.version += 1
        speed = self._machine.speed(len(self._left))
        return self._at + max(0.0, min(self._left.values())) / speed
