"""The protocols of links that are made anew, between processes of which each may die and be replaced.

::

    stage k                        what outlives both                       stage k + 1
    life 1, has lost 0 lines  ───►                       ◄───  life 1, has lost 0 lines
        └─────────────── the line of the epoch 1.0-1.0 ──────────────┘
                                                         ◄───  life 2: another process has taken its place
    life 1, has lost 1 line   ───►
        └─────────────── the line of the epoch 1.1-2.0 ──────────────┘

Nothing here concerns all ranks at once: each pair of neighbours makes its own lines, as often as it takes, while both go on
training.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch

from .base import Clock, Line

__all__ = ["Crossing", "ElasticTransport", "MadeLine", "Member", "Membership", "epoch_of"]


@dataclass(frozen=True, slots=True)
class Member:
    """What is known of the process that runs a stage.

    Attributes:
        life: which process it is: 1 for the first, one more for each that has taken its place; 0 if none has come.
        step: the number of steps that it has made.
        met: whether it has met all stages above it, and all below, or does not wait for them any more.
        has_ended: whether it has ended in order.
        silent_s: the time since its last sign of life, in seconds, as far as this process can tell.
    """

    life: int = 0
    step: int = 0
    met: tuple[bool, bool] = (False, False)
    has_ended: bool = False
    silent_s: float = 0.0


class Membership(Protocol):
    """What the processes of a pipeline know of each other. No method waits for another process."""

    @property
    def life(self) -> int:
        """The life of this process."""
        ...

    @property
    def problem(self) -> str | None:
        """Why nothing is known of the others at present; None if something is."""
        ...

    @property
    def is_replaced(self) -> bool:
        """Whether another process has taken the place of this one, while it was frozen or cut off."""
        ...

    def meet(self, above: bool, below: bool) -> None:
        """Tell the others whether this process has met all stages above it, and all below; see `Member`."""
        ...

    def announce(self, step: int) -> None:
        """Tell the others how many steps this process has made."""
        ...

    def member(self, stage: int) -> Member:
        """Return what is known of a stage."""
        ...

    def leave(self) -> None:
        """Tell the others that this process ends in order. May be called twice."""
        ...

    def stop(self) -> None:
        """Give no more signs of life; the others will take this process for dead. May be called twice."""
        ...


@dataclass(frozen=True, slots=True)
class MadeLine:
    """A line that both sides have made.

    Attributes:
        line: the line.
        round_trip_s: its round trip, in seconds, as the lower stage has measured it; 0 in the upper one.
    """

    line: Line
    round_trip_s: float = 0.0


class Crossing(Protocol):
    """The place where lines to one neighbour are made, one after the other. No method waits."""

    def made(self) -> MadeLine | None:
        """Return a line that has been made since the last call; None if there is none."""
        ...

    def is_void(self) -> bool:
        """Return whether the neighbour has given up the line that was made last, or is another process by now."""
        ...

    def give_up(self) -> None:
        """Give up the line that was made last; another one is made as soon as the neighbour is there."""
        ...

    def close(self) -> None:
        """Make no more lines. May be called twice."""
        ...


@runtime_checkable
class ElasticTransport(Protocol):
    """The access of one stage to its neighbours."""

    @property
    def rank(self) -> int:
        """The number of this stage, from 0."""
        ...

    @property
    def world_size(self) -> int:
        """The number of stages."""
        ...

    @property
    def clock(self) -> Clock:
        """The clock of this process."""
        ...

    def join(self, greeting: str, facts: Mapping[str, Any]) -> Membership:
        """Take the place of this stage.

        Args:
            greeting: a text that must be the same in all processes: the version.
            facts: JSON values that must be the same.

        Raises:
            ConfigError: if another process has another greeting or other facts, or the stage is alive.
            StageError: if what outlives the processes cannot be reached.
        """
        ...

    def crossing(self, neighbour: int, device: torch.device, patience_s: float) -> Crossing:
        """Return the place where lines to a neighbour are made, after `join`.

        Args:
            neighbour: the number of its stage.
            device: the device of this stage.
            patience_s: how long a send may wait until the neighbour accepts it, in seconds.
        """
        ...


def epoch_of(lower: tuple[int, int], upper: tuple[int, int]) -> str:
    """Return the name of the line of two sides, each given by its life and the number of lines that it has lost.

    >>> epoch_of((1, 1), (2, 0))
    '1.1-2.0'
    """
    return "-".join(f"{life}.{lost}" for life, lost in (lower, upper))
