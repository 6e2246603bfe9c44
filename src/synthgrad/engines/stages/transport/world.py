"""What ranks in memory share: a clock, links with parcels in flight, meetings, and texts.

A parcel that is sent at time ``t`` over an idle link with delay ``d`` and rate ``r`` arrives at ``t + size /
r + d``. If the link is not idle, the parcel leaves after those before it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ....core import ConfigError
from .base import RawParcel
from .virtual import VirtualTime

__all__ = ["Link", "Pipe", "World"]

#: How often a rank that waits for the others checks whether one has stopped, in seconds.
_POLL_S = 1.0


@dataclass(frozen=True, slots=True)
class Link:
    """The properties of the connection between two neighbours, in each direction.

    Attributes:
        delay_s: the time from the end of a send to the arrival, in seconds.
        bytes_per_s: the rate; infinite by default.
    """

    delay_s: float = 0.0
    bytes_per_s: float = float("inf")

    def check(self) -> None:
        """Refuse values that are out of range.

        Raises:
            ConfigError: naming the value.
        """
        if not 0 <= self.delay_s < float("inf"):
            raise ConfigError(f"delay_s={self.delay_s}: expected seconds from 0")
        if not self.bytes_per_s > 0:
            raise ConfigError(f"bytes_per_s={self.bytes_per_s}: expected a rate over 0")


class Pipe:
    """One direction of a link: the parcels in flight, and when they arrive."""

    def __init__(self, time: VirtualTime, link: Link) -> None:
        self._time = time
        self._link = link
        self._idle_at = 0.0
        self._under_way: deque[tuple[float, RawParcel]] = deque()

    def put(self, rank: int, header: Sequence[int], body: Tensor | None, size: int) -> None:
        """Send a header and a body, of ``size`` bytes together, at the time of a rank."""
        self._idle_at = max(self._idle_at, self._time.now(rank)) + size / self._link.bytes_per_s
        # A copy: the sender may reuse the memory, and the receiving module may change its input in place.
        received = RawParcel(list(header), None if body is None else body.clone())
        self._under_way.append((self._idle_at + self._link.delay_s, received))

    def get(self, rank: int, timeout_s: float | None, what: str) -> RawParcel | None:
        """Return the parcel that has arrived first, or None if none arrives within the timeout.

        A timeout of None means to wait without limit.
        """
        until = None if timeout_s is None else self._time.now(rank) + timeout_s

        def due() -> float | None:
            if not self._under_way:
                return until
            arrival = self._under_way[0][0]
            return arrival if until is None else min(arrival, until)

        if not self._is_here(rank) and timeout_s != 0:
            self._time.wait(rank, what, due)
        return self._under_way.popleft()[1] if self._is_here(rank) else None

    def _is_here(self, rank: int) -> bool:
        return bool(self._under_way) and self._under_way[0][0] <= self._time.now(rank)


class World:
    """What the ranks share.

    Attributes:
        num_ranks: the number of ranks.
        time: their clock.
        texts: the texts that ranks have published.
        ended: the times at which the programs of ranks have ended.
        waits_for: the rank that each rank waits for.
    """

    def __init__(self, num_ranks: int, links: Link | Sequence[Link]) -> None:
        if num_ranks < 1:
            raise ConfigError(f"num_ranks={num_ranks}: expected at least 1")
        self._links = [links] * (num_ranks - 1) if isinstance(links, Link) else list(links)
        if len(self._links) != num_ranks - 1:
            raise ConfigError(
                f"{len(self._links)} links for {num_ranks} ranks: expected {num_ranks - 1}, one between each two neighbours, "
                "or a single one for all"
            )
        for link in self._links:
            link.check()
        self.num_ranks = num_ranks
        self.time = VirtualTime(num_ranks)
        self.texts: dict[str, str] = {}
        self.ended: dict[int, float] = {}
        self.waits_for: dict[int, int | None] = {}
        self._pipes: dict[tuple[str, int, int], Pipe] = {}
        self._peers_and_device: dict[
            str, dict[int, tuple[float, Any]]
        ] = {}  # meetings: who came when, and with what
        self._left: dict[str, int] = {}  # the number of ranks that have left a meeting

    def pipe(self, name: str, source: int, dest: int) -> Pipe:
        """Return one direction between two ranks, by a name; it has the delays of all links between them."""
        key = (name, source, dest)
        if key not in self._pipes:
            links = self._links[min(source, dest) : max(source, dest)]
            delay_s, rate = sum(link.delay_s for link in links), min(link.bytes_per_s for link in links)
            self._pipes[key] = Pipe(self.time, Link(delay_s, rate))
        return self._pipes[key]

    def meet(self, rank: int, name: str, value: Any, check: Callable[[], None] | None = None) -> list[Any]:
        """Contribute a value to a meeting; return the values of all ranks when all have come.

        Args:
            rank: the rank of the calling thread.
            name: the name of the meeting.
            value: the value of this rank; it must not be changed afterwards.
            check: called repeatedly during the wait.
        """
        came = self._peers_and_device.setdefault(name, {})
        came[rank] = self.time.now(rank), value

        def all_are_here() -> float | None:
            return max(at for at, _ in came.values()) if len(came) == self.num_ranks else None

        while all_are_here() is None:
            until = None if check is None else self.time.now(rank) + _POLL_S

            def due(until: float | None = until) -> float | None:
                at = all_are_here()
                return until if at is None else at

            self.time.wait(rank, f"waits for all others at {name}", due)
            if check is not None and all_are_here() is None:
                check()
        self._left[name] = self._left.get(name, 0) + 1
        if self._left[name] == self.num_ranks:
            del self._peers_and_device[name], self._left[name]
        return [came[k][1] for k in range(self.num_ranks)]
