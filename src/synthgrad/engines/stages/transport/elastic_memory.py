"""Lines that are made anew between threads of one process, in virtual time: processes that die, freeze or are cut off, for tests.

A run in which a process dies at 2.5 s and another takes its place at 4 s is the same, to the last bit, every time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ....core import ConfigError
from .elastic import MadeLine, Member, epoch_of
from .memory import MemoryClock, MemoryLine
from .world import Link, Pipe, World

__all__ = ["Cut", "ElasticMemory", "ElasticWorld"]


@dataclass(frozen=True, slots=True)
class Cut:
    """A time in which nothing crosses a link.

    Attributes:
        lower: the stage below the link.
        begin_s, end_s: when, in seconds.
    """

    lower: int
    begin_s: float
    end_s: float


@dataclass(slots=True)
class _Place:
    """What is known of a stage's process."""

    life: int = 0
    step: int = 0
    met: tuple[bool, bool] = (False, False)
    has_ended: bool = False
    is_dead: bool = True
    frozen_at: float | None = None
    lost: dict[int, int] = field(default_factory=dict[int, int])


class ElasticWorld:
    """What the threads share.

    Args:
        world: their clock.
        num_stages: how many stages there are.
        link: every link between neighbours.
        cuts: when nothing crosses.
    """

    def __init__(
        self, world: World, num_stages: int, link: Link | None = None, cuts: Sequence[Cut] = ()
    ) -> None:
        self.world = world
        self.places = [_Place() for _ in range(num_stages)]
        self.card: dict[str, Any] = {}
        self.willing: set[tuple[int, str, int]] = set()
        self.link = link or Link()
        self._cuts = cuts
        self._pipes: dict[tuple[int, str, int], Pipe] = {}

    def is_cut(self, lower: int, now: float) -> float | None:
        """Return until when a link is cut; None if it is not."""
        return next((c.end_s for c in self._cuts if c.lower == lower and c.begin_s <= now < c.end_s), None)

    def pipe(self, lower: int, epoch: str, source: int) -> Pipe:
        """Return one direction of a line."""
        key = (lower, epoch, source)
        if key not in self._pipes:
            self._pipes[key] = _CutPipe(self, lower)
        return self._pipes[key]


class _CutPipe(Pipe):
    """A direction in which what is sent during a cut leaves after it."""

    def __init__(self, shared: ElasticWorld, lower: int) -> None:
        super().__init__(shared.world.time, shared.link)
        self._shared = shared
        self._lower = lower

    def put(self, rank: int, header: Sequence[int], body: Tensor | None, size: int) -> None:
        until = self._shared.is_cut(self._lower, self._time.now(rank))
        if until is not None:
            self._idle_at = max(self._idle_at, until)
        super().put(rank, header, body, size)


class _Members:
    """See `Membership`. Everybody knows everything at once."""

    problem = None

    def __init__(self, shared: ElasticWorld, thread: int, stage: int) -> None:
        self._shared = shared
        self._thread = thread
        self._own = shared.places[stage]
        self.life = self._own.life
        self._stage = stage

    @property
    def is_replaced(self) -> bool:
        return self._shared.places[self._stage].life > self.life

    def meet(self, above: bool, below: bool) -> None:
        self._own.met = above, below

    def announce(self, step: int) -> None:
        self._own.step = step

    def member(self, stage: int) -> Member:
        place = self._shared.places[stage]
        now = self._shared.world.time.now(self._thread)
        silent_s = 0.0 if place.frozen_at is None else now - place.frozen_at
        return Member(place.life, place.step, place.met, place.has_ended, silent_s)

    def leave(self) -> None:
        self._own.has_ended = True

    def stop(self) -> None:
        self._own.is_dead = True


class _Crossing:
    """See `Crossing`."""

    def __init__(
        self, shared: ElasticWorld, thread: int, stage: int, neighbour: int, patience_s: float
    ) -> None:
        self._shared = shared
        self._thread = thread
        self._stage = stage
        self._neighbour = neighbour
        self._patience_s = patience_s
        self._lower = min(stage, neighbour)
        self._present: str | None = None

    def made(self) -> MadeLine | None:
        shared, theirs = self._shared, self._shared.places[self._neighbour]
        epoch, now = self._epoch(), shared.world.time.now(self._thread)
        if self._present is not None or not theirs.life or shared.is_cut(self._lower, now) is not None:
            return None
        if theirs.is_dead or theirs.has_ended:
            return None
        shared.willing.add((self._lower, epoch, self._stage))
        if (self._lower, epoch, self._neighbour) not in shared.willing:
            return None
        self._present = epoch
        out, back = (shared.pipe(self._lower, epoch, side) for side in (self._stage, self._neighbour))
        is_lower = self._stage == self._lower
        return MadeLine(MemoryLine(out, back, self._thread), 2 * shared.link.delay_s if is_lower else 0.0)

    def is_void(self) -> bool:
        theirs = self._shared.places[self._neighbour]
        now = self._shared.world.time.now(self._thread)
        frozen = theirs.frozen_at is not None and now - theirs.frozen_at > self._patience_s
        return self._present is None or self._present != self._epoch() or theirs.is_dead or frozen

    def give_up(self) -> None:
        lost = self._shared.places[self._stage].lost
        lost[self._neighbour] = lost.get(self._neighbour, 0) + 1
        self._present = None

    def close(self) -> None:
        self._present = None

    def _epoch(self) -> str:
        lower, upper = (self._shared.places[k] for k in (self._lower, self._lower + 1))
        return epoch_of(
            (lower.life, lower.lost.get(self._lower + 1, 0)), (upper.life, upper.lost.get(self._lower, 0))
        )


class ElasticMemory:
    """The access of a stage to its neighbours; see `ElasticTransport`.

    Args:
        shared: what the threads share.
        thread: the number of this thread.
        stage: the number of its stage.
    """

    def __init__(self, shared: ElasticWorld, thread: int, stage: int) -> None:
        self._shared = shared
        self._thread = thread
        self.rank = stage
        self.world_size = len(shared.places)
        self.clock = MemoryClock(shared.world.time, thread)
        self._place = _Place()  # that of this process, once it has joined

    def join(self, greeting: str, facts: Mapping[str, Any]) -> _Members:
        """See `ElasticTransport.join`."""
        place, card = self._shared.places[self.rank], {"the version": greeting, **facts}
        theirs = self._shared.card = self._shared.card or card
        for name, value in card.items():
            if theirs.get(name) != value:
                raise ConfigError(f"stage {self.rank} and the process that came first differ in {name}")
        if not place.is_dead and not place.has_ended and place.frozen_at is None:
            raise ConfigError(f"stage {self.rank} is alive, at step {place.step}")
        self._place = self._shared.places[self.rank] = _Place(place.life + 1, is_dead=False)
        return _Members(self._shared, self._thread, self.rank)

    def crossing(self, neighbour: int, device: torch.device, patience_s: float) -> _Crossing:
        """See `ElasticTransport.crossing`."""
        return _Crossing(self._shared, self._thread, self.rank, neighbour, patience_s)

    def die(self) -> None:
        """End this process without a word."""
        self._place.is_dead = True

    def freeze(self, seconds: float) -> None:
        """Do nothing for a while, and give no sign of life."""
        self._place.frozen_at = self.clock.now()
        self.clock.sleep(seconds)
        self._place.frozen_at = None
