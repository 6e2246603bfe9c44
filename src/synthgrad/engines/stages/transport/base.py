"""What stages need of a transport, as protocols: small enough that a test can have one of its own.

::

    sending rank                       receiving rank
    ────────────                       ──────────────
    Sender.send(header, body)  ─────►  Receiver.get()

A *header* is a fixed number of int64 numbers, the first of which is the size of the body in bytes. A *body* is a row of
bytes, and may be empty. What the numbers and bytes mean is known to ``wire.py`` alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from ..layout import RankLayout

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

__all__ = [
    "ALIGNED",
    "BrokenLine",
    "HeaderCheck",
    "Clock",
    "WaitLimit",
    "Line",
    "Lines",
    "Peers",
    "PeerStatus",
    "RawParcel",
    "Receiver",
    "Sender",
    "Transport",
]

#: The size of every body is a multiple of so many bytes.
ALIGNED = 16

#: Looks at a header before its body is received. Returns whether another one will follow; raises `StageError` if nobody
#: agreed upon such a header.
HeaderCheck = Callable[[Sequence[int]], bool]


class Clock(Protocol):
    """The time by which a rank measures how long it works and waits."""

    def now(self) -> float:
        """Return the time in seconds since a moment that is the same throughout a run."""
        ...

    def sleep(self, seconds: float) -> None:
        """Let so much time pass. Blocks."""
        ...


@dataclass(frozen=True, slots=True)
class PeerStatus:
    """What is known of another rank.

    Attributes:
        is_gone: it has ended without a goodbye.
        has_parted: it has said goodbye.
        silent_s: time since it was heard last, or since it was found to be gone, in seconds.
        waits_for: the rank that it waits for; None while it works.
    """

    is_gone: bool = False
    has_left: bool = False
    silent_s: float = 0.0
    waits_for: int | None = None


class Peers(Protocol):
    """What the ranks of one engine tell and know of each other, apart from tensors. No method waits for another rank."""

    def announce_wait(self, rank: int | None) -> None:
        """Let the others see which rank this one waits for; None while it works."""
        ...

    def publish(self, key: str, value: str) -> None:
        """Give all ranks a text under a name; where there is one already, that stays."""
        ...

    def lookup(self, key: str) -> str | None:
        """Return the text under a name, as far as it has come here."""
        ...

    def status(self, rank: int) -> PeerStatus:
        """Return what is known of another rank."""
        ...

    def leave(self) -> None:
        """Say goodbye. Nothing can be told afterwards. May be called twice."""
        ...


@dataclass(frozen=True, slots=True)
class WaitLimit:
    """What ends a wait for other ranks.

    Attributes:
        timeout_s: the longest that it may take, in seconds.
        check: is called again and again meanwhile; what it raises ends the wait.
        waits_for: is told which rank is waited for; None when the wait is over.
    """

    timeout_s: float = 300.0
    check: Callable[[], None] = lambda: None
    announce_wait: Callable[[int | None], None] = lambda rank: None


class BrokenLine(Exception):
    """Nothing crosses a line any more.

    Attributes:
        peer: rank of the neighbour.
        is_late: it still stands, but the neighbour has not taken anything for too long.
    """

    def __init__(self, peer: int, reason: str, *, is_late: bool = False) -> None:
        super().__init__(reason)
        self.peer = peer
        self.is_late = is_late


class Sender(Protocol):
    """The sending end of one direction between two neighbours."""

    @property
    def waited_s(self) -> float:
        """Time spent because too much was still unsent, in seconds."""
        ...

    def send(self, header: Sequence[int], body: Tensor | None, number: int) -> None:
        """Send a header and a body. Returns at once, unless more is unsent than there is room for.

        Args:
            header: its first number is the size of the body.
            body: ``(n,)`` uint8, where ``n`` is a multiple of `ALIGNED`; None for an empty one. It must not change any
                more.
            number: of the batch, for `arrived`.
        """
        ...

    def make_room(self, num_parcels: int) -> None:
        """Prepare for so many headers and bodies that are under way at once. Never makes less room."""
        ...

    def arrived(self, number: int) -> None:
        """Let go of what was sent for batches up to this one: the receiver has said that it has them."""
        ...

    def flush(self) -> None:
        """Wait until everything has left. Blocks."""
        ...


@dataclass(frozen=True, slots=True)
class RawParcel:
    """A header and a body.

    Attributes:
        header: the numbers.
        body: ``(n,)`` uint8, owned by the receiver; None if it is empty.
    """

    header: list[int]
    body: Tensor | None


class Receiver(Protocol):
    """The receiving end of one direction between two neighbours."""

    def start(self) -> None:
        """Begin to receive. Called once, when all is set up."""
        ...

    def get(self, timeout_s: float | None) -> RawParcel | None:
        """Return the oldest header and body that nobody has taken yet, or None if there are none.

        Args:
            timeout_s: blocks so long for them, in seconds; None not to block.

        Raises:
            StageError: if a header came that nobody agreed upon.
            Exception: what has broken the connection.
        """
        ...

    def make_room(self, num_parcels: int) -> None:
        """Prepare for so many headers and bodies that are under way at once. Never makes less room."""
        ...

    def join(self, timeout_s: float) -> bool:
        """Wait for the end of the direction, and return whether it has come. Blocks."""
        ...


class Line(Protocol):
    """Both directions between this rank and one neighbour."""

    def sender(self) -> Sender:
        """Make the sending end. Called once."""
        ...

    def receiver(self, length: int, check: HeaderCheck, name: str) -> Receiver:
        """Make the receiving end. Called once.

        Args:
            length: numbers in a header.
            check: looks at every header, perhaps in a thread of the transport.
            name: of the direction, for errors.
        """
        ...


class Lines(Protocol):
    """What connects a rank with its neighbours."""

    @property
    def below(self) -> Line | None:
        """The line to the stage below; None for the first."""
        ...

    @property
    def above(self) -> Line | None:
        """The line to the stage above; None for the last."""
        ...

    @property
    def replicas(self) -> ProcessGroup | None:
        """The group of the copies of this stage, over which data parallel training averages; None without copies."""
        ...

    def round_trip_s(self) -> float:
        """Measure the round trip to the stage above, in seconds; 0 for the last stage.

        Blocks. All ranks must call it, before they make the ends of their lines.
        """
        ...

    def close(self) -> None:
        """Let go of the lines, whatever is under way: what waits in them ends. May be called twice."""
        ...


class Transport(Protocol):
    """One rank's access to all others."""

    @property
    def rank(self) -> int:
        """Number of this rank, from 0."""
        ...

    @property
    def world_size(self) -> int:
        """Number of ranks."""
        ...

    @property
    def clock(self) -> Clock:
        """By which this rank measures time."""
        ...

    def peers(self, greeting: str, timeout_s: float = 300.0) -> Peers:
        """Meet the other ranks for the next engine. All must make their engines in one order. Blocks until all have come.

        Args:
            greeting: must be the same everywhere: the version.
            timeout_s: how long to wait for the others, in seconds.

        Raises:
            ConfigError: if another rank has another greeting.
            StageError: naming a rank that does not come in time.
        """
        ...

    def lines(self, layout: RankLayout, device: torch.device, limit: WaitLimit = WaitLimit()) -> Lines:
        """Make the lines between neighbours. Blocks until all ranks have called it.

        Args:
            layout: the place of this rank.
            device: of this rank's stage.
            limit: of this wait and of all others for the lines: to measure them, and until there is room to send.

        Raises:
            ConfigError: if the transport cannot connect such a layout.
            StageError: if it takes too long.
        """
        ...

    def sum(self, tensor: Tensor, check: Callable[[], None]) -> Tensor:
        """Return the sum of a tensor over all ranks. Blocks until all have called it.

        Args:
            tensor: of one shape and dtype everywhere; it may be overwritten.
            check: called again and again meanwhile; what it raises ends the wait.
        """
        ...

    def broadcast(self, tensor: Tensor, source: int, check: Callable[[], None] | None = None) -> None:
        """Copy a tensor of one rank into those of all others, in place. Blocks; all ranks must call it.

        Args:
            tensor: of one shape and dtype everywhere.
            source: the rank whose values count.
            check: called again and again meanwhile; what it raises ends the wait.
        """
        ...


def missing_rank_message(rank: int, timeout_s: float) -> str:
    """Return what to say of a rank that is missing."""
    return f"rank {rank} did not come to the handshake within {timeout_s:g} s; do all processes build the engine?"


def other_version_message(rank: int, theirs: str, own_rank: int, own: str) -> str:
    """Return what to say to another version."""
    return f"rank {rank} runs {theirs}, and rank {own_rank} {own}: install the same version for all processes"
