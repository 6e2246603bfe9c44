"""What a process does, as data: it computes, sends, and waits.

A schedule is one sequence of actions for each process. `simulate` reads them, and nothing else knows of time.

>>> lower = [Compute("forward", 0, 2.0), Send(("F", 1, 0), 1, 100.0), Mark(0)]
>>> upper = [Wait(("F", 1, 0)), Compute("forward", 0, 1.0), Mark(0)]
>>> from synthgrad.planner import Job, Link, Network, simulate
>>> job = Job("two", lambda: [iter(lower), iter(upper)], num_stages=2, steps=1, warm=0)
>>> simulate(job, Network.of(Link.of(rtt_ms=1000))).end_s  # 2 s, half a round trip, 1 s
3.5
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from ..core import ConfigError

__all__ = ["Action", "Compute", "Job", "Mark", "Observe", "Post", "Send", "Tag", "Wait", "WaitSent"]

#: Names a message: what it is (``"F"`` activation, ``"B"`` gradient), for which stage, of which batch.
Tag = tuple[str, int, int]


class Compute(NamedTuple):
    """The process computes.

    Attributes:
        kind: what: ``forward``, ``backward``, ``credit``, ``update`` …
        batch: number of the batch or microbatch.
        seconds: alone on a core.
        stage: whose part it is, where a process has several.
        takes: bytes that are held from now on.
        frees: bytes that are freed when it is done.
    """

    kind: str
    batch: int
    seconds: float
    stage: int = -1
    takes: float = 0.0
    frees: float = 0.0


class Send(NamedTuple):
    """The process sends a message, and goes on.

    Attributes:
        tag: its name, which is used once.
        to: number of the receiving process.
        num_bytes: of the message.
        carries: False for a header that says only how far the sender is.
    """

    tag: Tag
    to: int
    num_bytes: float
    carries: bool = True


class Post(NamedTuple):
    """The process asks for a message, for which it will wait later: with a rendezvous it starts no earlier."""

    tag: Tag
    source: int


class Wait(NamedTuple):
    """The process waits until a message is here, and takes it. Where it has not asked yet, it asks now."""

    tag: Tag
    source: int = -1


class WaitSent(NamedTuple):
    """The process waits until the last byte of a message of its own has left; without a rendezvous it does not wait."""

    tag: Tag


class Observe(NamedTuple):
    """The process takes the answers from above that are here, in order, and waits for one of them.

    Attributes:
        stage: that the answers are for; their tags are ``("B", stage, batch)``.
        step: of the process: later answers are left.
        until: waits for the answer for this batch, if it is 0 or more.
        seconds: that it computes for each answer that carries a message.
    """

    stage: int
    step: int
    until: int
    seconds: float = 0.0


class Mark(NamedTuple):
    """A step of the process ends."""

    step: int


Action = Compute | Send | Post | Wait | WaitSent | Observe | Mark


@dataclass(frozen=True)
class Job:
    """A schedule for some processes.

    Attributes:
        name: of the schedule, for tables.
        programs: returns the actions of each process, anew at each call.
        num_stages: how many processes there are to report about: the first ones. Others stand for what communicates
            while these compute.
        steps: how many there are; each ends with a `Mark` in every process.
        warm: number of the last step that is not measured: the pipe fills until then. If no step is left, all are measured.
        batch_size: examples of a step of all processes together.
        owners: of the other processes, whose communication they are.
    """

    name: str
    programs: Callable[[], list[Iterator[Action]]]
    num_stages: int
    steps: int
    warm: int = 0
    batch_size: int = 1
    owners: Mapping[int, int] = field(default_factory=dict[int, int])

    def __post_init__(self) -> None:
        if self.steps < 1 or not 0 <= self.warm < self.steps:
            raise ConfigError(
                f"{self.steps} steps, of which those up to number {self.warm} are not measured: expected more steps"
            )
