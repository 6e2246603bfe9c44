"""The protocols of transports. They are small, so that a test can have a transport of its own.

::

    sending rank                       receiving rank
    ────────────                       ──────────────
    Sender.send(header, body)  ─────►  Receiver.get()

A *header* is a fixed number of int64 numbers, the first of which is the size of the body in bytes. A *body*
is a row of bytes, and may be empty. Only ``wire.py`` knows what the numbers and bytes mean.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from ..layout import RankLayout

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

__all__ = [
    "ALIGNED",
    "BrokenLine",
    "Clock",
    "HeaderCheck",
    "Line",
    "Lines",
    "PeerStatus",
    "Peers",
    "RawParcel",
    "Receiver",
    "Sender",
    "Transport",
    "WaitLimit",
]

#: The size of every body is a multiple of this number of bytes.
ALIGNED = 16

#: Checks a header before its body is received. Returns whether another header will follow; raises `StageError` if the
#: header was not agreed upon.
HeaderCheck = Callable[[Sequence[int]], bool]


class Clock(Protocol):
    """The clock by which a rank measures how long it works and waits."""

    def now(self) -> float:
        """Return the time in seconds since a moment that is the same throughout a run."""
        ...

    def sleep(self, seconds: float) -> None:
        """Let some time pass. Blocks."""
        ...


@dataclass(frozen=True, slots=True)
class PeerStatus:
    """What is known of another rank.

    Attributes:
        is_gone: whether it has ended without leaving.
        has_left: whether it has left in order.
        silent_s: the time since it was last heard, or since it was found to be gone, in seconds.
        waits_for: the rank that it waits for; None while it works.
    """

    is_gone: bool = False
    has_left: bool = False
    silent_s: float = 0.0
    waits_for: int | None = None


class Peers(Protocol):
    """What the ranks of one engine publish and know of each other, apart from tensors.

    No method waits for another rank.
    """

    def announce_wait(self, rank: int | None) -> None:
        """Announce which rank this one waits for; None while it works."""
        ...

    def publish(self, key: str, value: str) -> None:
        """Publish a text under a key for all ranks. If the key has a text already, that stays."""
        ...

    def lookup(self, key: str) -> str | None:
        """Return the text under a key, if it has arrived here."""
        ...

    def status(self, rank: int) -> PeerStatus:
        """Return what is known of another rank."""
        ...

    def leave(self) -> None:
        """Leave in order. Nothing can be published afterwards. May be called twice."""
        ...


@dataclass(frozen=True, slots=True)
class WaitLimit:
    """The limit of a wait for other ranks.

    Attributes:
        timeout_s: the longest time, in seconds.
        check: called repeatedly during the wait; an error that it raises ends the wait.
        announce_wait: called with the rank that is waited for; with None when the wait is over.
    """

    timeout_s: float = 300.0
    check: Callable[[], None] = lambda: None
    announce_wait: Callable[[int | None], None] = lambda rank: None


class BrokenLine(Exception):
    """A line is broken, and nothing crosses it any more.

    Attributes:
        peer: the rank of the neighbour.
        is_late: whether the line still stands, but the neighbour has not accepted anything for too long.
    """

    def __init__(self, peer: int, reason: str, *, is_late: bool = False) -> None:
        super().__init__(reason)
        self.peer = peer
        self.is_late = is_late


class Sender(Protocol):
    """The sending end of one direction between two neighbours."""

    @property
    def waited_s(self) -> float:
        """The time spent waiting because too much was unsent, in seconds."""
        ...

    def send(self, header: Sequence[int], body: Tensor | None, number: int) -> None:
        """Send a header and a body. Returns at once, unless too much is unsent.

        Args:
            header: the header; its first number is the size of the body.
            body: ``(n,)`` uint8, where ``n`` is a multiple of `ALIGNED`; None for an empty body. It must not
                be changed afterwards.
            number: the number of the batch, for `arrived`.
        """
        ...

    def make_room(self, num_parcels: int) -> None:
        """Prepare for this number of headers and bodies in flight at once. Never makes less room."""
        ...

    def arrived(self, number: int) -> None:
        """Release what was sent for batches up to this one: the receiver has acknowledged them."""
        ...

    def flush(self) -> None:
        """Wait until everything has been sent. Blocks."""
        ...


@dataclass(frozen=True, slots=True)
class RawParcel:
    """A header and a body, as received.

    Attributes:
        header: the numbers.
        body: ``(n,)`` uint8, owned by the receiver; None if it is empty.
    """

    header: list[int]
    body: Tensor | None


class Receiver(Protocol):
    """The receiving end of one direction between two neighbours."""

    def start(self) -> None:
        """Start to receive. Called once, when everything is set up."""
        ...

    def get(self, timeout_s: float | None) -> RawParcel | None:
        """Return the oldest header and body that were not returned yet, or None if there are none.

        Args:
            timeout_s: how long to block until there are some, in seconds; None not to block.

        Raises:
            StageError: if a header was not agreed upon.
            Exception: the error that has broken the connection.
        """
        ...

    def make_room(self, num_parcels: int) -> None:
        """Prepare for this number of headers and bodies in flight at once. Never makes less room."""
        ...

    def join(self, timeout_s: float) -> bool:
        """Wait for the end of the direction, and return whether it has come. Blocks."""
        ...


class Line(Protocol):
    """Both directions between this rank and one neighbour."""

    def sender(self) -> Sender:
        """Create the sending end. Called once."""
        ...

    def receiver(self, length: int, check: HeaderCheck, name: str) -> Receiver:
        """Create the receiving end. Called once.

        Args:
            length: the length of a header.
            check: checks every header, perhaps in a thread of the transport.
            name: the name of the direction, for errors.
        """
        ...


class Lines(Protocol):
    """The lines of a rank to its neighbours."""

    @property
    def below(self) -> Line | None:
        """The line to the stage below; None for the first stage."""
        ...

    @property
    def above(self) -> Line | None:
        """The line to the stage above; None for the last stage."""
        ...

    @property
    def around(self) -> Line | None:
        """The line from the first stage to the last one, and back; None for others, or where it was not asked for."""
        ...

    @property
    def replicas(self) -> ProcessGroup | None:
        """The process group of the copies of this stage, for data parallel training; None without copies."""
        ...

    def round_trip_s(self) -> float:
        """Measure the round trip to the stage above, in seconds; 0 for the last stage.

        Blocks. All ranks must call it, before they create the ends of their lines.
        """
        ...

    def close(self) -> None:
        """Close the lines, whatever is in flight; waits in them end. May be called twice."""
        ...


class Transport(Protocol):
    """The access of one rank to all others."""

    @property
    def rank(self) -> int:
        """The number of this rank, from 0."""
        ...

    @property
    def world_size(self) -> int:
        """The number of ranks."""
        ...

    @property
    def clock(self) -> Clock:
        """The clock of this rank."""
        ...

    def peers(self, greeting: str, timeout_s: float = 300.0) -> Peers:
        """Meet the other ranks for the next engine.

        Blocks until all have called it. All must create their engines in the same order.

        Args:
            greeting: a text that must be the same everywhere: the version.
            timeout_s: how long to wait for the others, in seconds.

        Raises:
            ConfigError: if another rank has another greeting.
            StageError: naming a rank that does not come in time.
        """
        ...

    def lines(
        self,
        layout: RankLayout,
        device: torch.device,
        limit: WaitLimit = WaitLimit(),
        *,
        around: bool = False,
    ) -> Lines:
        """Create the lines between neighbours. Blocks until all ranks have called it.

        Args:
            layout: the place of this rank.
            device: the device of this rank's stage.
            limit: the limit of this wait and of all others for the lines: to measure them, and until there is
                room to send.
            around: whether to connect the first stage and the last one too, by a line of their own.

        Raises:
            ConfigError: if the transport cannot connect such a layout.
            StageError: if it takes too long.
        """
        ...

    def sum(self, tensor: Tensor, check: Callable[[], None]) -> Tensor:
        """Return the sum of a tensor over all ranks. Blocks until all have called it.

        Args:
            tensor: a tensor of the same shape and dtype everywhere; it may be overwritten.
            check: called repeatedly during the wait; an error that it raises ends the wait.
        """
        ...

    def broadcast(self, tensor: Tensor, source: int, check: Callable[[], None] | None = None) -> None:
        """Copy a tensor of one rank into those of all others, in place. Blocks; all ranks must call it.

        Args:
            tensor: a tensor of the same shape and dtype everywhere.
            source: the rank whose values are copied.
            check: called repeatedly during the wait; an error that it raises ends the wait.
        """
        ...


def missing_rank_message(rank: int, timeout_s: float) -> str:
    """Return the message of the error for a rank that is missing."""
    return f"rank {rank} did not come to the handshake within {timeout_s:g} s; do all processes build the engine?"


def other_version_message(rank: int, theirs: str, own_rank: int, own: str) -> str:
    """Return the message of the error for a rank with another version."""
    return f"rank {rank} runs {theirs}, and rank {own_rank} {own}: install the same version for all processes"


def difference(a: Any, b: Any) -> str:
    """Return how two JSON values differ, in words; of lists the first entries that do."""
    if isinstance(a, list) and isinstance(b, list):
        for one, two in zip(a, b, strict=False):
            if one != two:
                return f"{one} against {two}"
        return f"{len(a)} entries against {len(b)}"
    return f"{a} against {b}"
