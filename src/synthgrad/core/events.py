"""The timeline of a run: what happened in which order, the evidence that a lock is gone."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

__all__ = ["Event", "Kind", "Timeline"]

Kind = Literal["forward", "credit", "backward", "message", "observe", "supply", "update", "skip"]


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened.

    Attributes:
        kind: ``forward`` (a module's forward is done), ``credit`` (an interface gave credit),
            ``backward`` (a module's graph was used and freed), ``message`` (an interface received the
            message from above), ``observe`` (its rule learned), ``supply`` (a synthetic input was made for the
            module above), ``update`` (an optimizer stepped), ``skip`` (a module drew no update this step).
        where: name of the module or interface.
        step: the step of the run, counted from 0.
        batch: the step at which the data that this is about entered the network.
    """

    kind: Kind
    where: str
    step: int
    batch: int

    def __str__(self) -> str:
        return f"{self.step}:{self.kind}({self.where})@{self.batch}"


@dataclass
class Timeline:
    """A list of events that an engine fills when it is given one. Grows without bound: keep runs short."""

    events: list[Event] = field(default_factory=list[Event])

    def add(self, kind: Kind, where: str, step: int, batch: int) -> None:
        """Append an event."""
        self.events.append(Event(kind, where, step, batch))

    def order(self, *kinds: Kind) -> list[str]:
        """Return ``kind where`` of the events of these kinds (all kinds if none is named), in order."""
        return [f"{e.kind} {e.where}" for e in self.events if not kinds or e.kind in kinds]
