"""The transport over gloo: tensors go through the host's memory, and receives are posted ahead.

A posted receive of gloo is known to be complete only when it is waited for, so a thread waits. A sender holds
back a tensor until the receiver has posted a receive for it, which costs a round trip. So receives are posted
ahead for as many parcels as may be in flight. Bodies of each size have a tag of their own, so that a receive
that was posted for another size simply waits for the next body of that size. A posted receive cannot be
withdrawn, so only frequent sizes get receives ahead; for other sizes a receive is posted when the header has
arrived.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ....core import StageError
from ..layout import RankLayout
from .base import ALIGNED, HeaderCheck, Peers, WaitLimit
from .ends import FOREVER, PostingSender, ThreadReceiver
from .gloo_group import GlooDirection, GlooGroup, gloo_device
from .process_group import GroupLine, GroupLines, ProcessGroupTransport, wait_for_work
from .timeout import call_with_timeout

__all__ = ["GlooLine", "GlooTransport", "make_line"]

_CPU = torch.device("cpu")

#: The number of receives that are posted ahead: for headers, and for bodies until the sender's window is known.
_HEADERS_AHEAD, _FIRST_AHEAD = 80, 4

#: A size is frequent if at least `_OFTEN` of the last `_OF_THE_LAST` bodies had it; at most `_MOST_SIZES` get receives ahead.
_OFTEN, _OF_THE_LAST, _MOST_SIZES = 4, 8, 8


def _tag(size: int) -> int:
    """Return the tag of a body of a given size; tag 0 is that of headers."""
    return 1 + size // ALIGNED


@dataclass(frozen=True, slots=True)
class _Posted:
    """A posted receive, and the tensor that it writes to."""

    work: dist.Work
    tensor: Tensor

    def wait(self) -> Tensor:
        self.work.wait(FOREVER)
        return self.tensor


class _GlooReceiver(ThreadReceiver):
    """Keeps receives posted for headers, and for bodies of frequent sizes."""

    def __init__(self, direction: GlooDirection, length: int, check: HeaderCheck, name: str) -> None:
        super().__init__(direction, _CPU, length, check, name)
        self._headers: deque[_Posted] = deque()
        self._bodies: dict[int, deque[_Posted]] = {}  # by size
        self._last: deque[int] = deque(maxlen=_OF_THE_LAST)  # the sizes of the last bodies
        self._ahead = _FIRST_AHEAD

    def make_room(self, num_parcels: int) -> None:
        self._ahead = max(self._ahead, num_parcels)

    @property
    def num_posted(self) -> int:
        """The number of receives for bodies that are posted."""
        return sum(len(posted) for posted in self._bodies.values())

    def _header(self) -> list[int]:
        while len(self._headers) < _HEADERS_AHEAD:
            # Posted ahead: without a posted receive the sender would hold a header back for a round trip.
            self._headers.append(self._post(torch.empty(self._length, dtype=torch.int64), 0))
        return self._headers.popleft().wait().tolist()

    def _body(self, size: int) -> Tensor:
        if not self._last:
            # Assume at first that all bodies have the size of the first one.
            self._last.extend([size] * _OF_THE_LAST)
        self._last.append(size)
        posted = self._bodies.get(size)
        if posted is None:
            if self._last.count(size) < _OFTEN or len(self._bodies) == _MOST_SIZES:
                return self._post_body(size).wait()  # a rare size: nothing is posted ahead for it
            posted = self._bodies[size] = deque()
        while len(posted) < self._ahead + 1:
            posted.append(self._post_body(size))
        # Gloo completes the receives of one tag in the order in which they were posted.
        found = posted.popleft().wait()
        if self._last.count(size) >= _OFTEN:
            posted.append(self._post_body(size))  # replaces the receive that has just been used
        return found

    def _forget(self) -> None:
        self._headers.clear()
        self._bodies.clear()

    def _post_body(self, size: int) -> _Posted:
        return self._post(torch.empty(size, dtype=torch.uint8), _tag(size))

    def _post(self, tensor: Tensor, tag: int) -> _Posted:
        return _Posted(self._direction.receive(tensor, tag), tensor)


class GlooLine(GroupLine):
    """Both directions to a neighbour, over a group of gloo's each."""

    def __init__(self, out: GlooDirection, back: GlooDirection, timeout_s: float) -> None:
        super().__init__(out, back, _CPU, timeout_s)
        self._incoming = back

    def _make_sender(self) -> PostingSender:
        return PostingSender(self._out, _CPU, _tag, self._timeout_s)

    def _make_receiver(self, length: int, check: HeaderCheck, name: str) -> _GlooReceiver:
        return _GlooReceiver(self._incoming, length, check, name)


def make_line(
    what: str,
    peers: Peers,
    ends: tuple[int, int],
    rank: int,
    device: Any,
    limit: WaitLimit,
    timeout_s: float,
) -> GlooLine:
    """Return a line between two ranks. Blocks until both have called it.

    Args:
        what: what lines between the same two are told apart by; empty for the usual one.
        peers: through which they find each other.
        ends: the lower rank, and the upper one.
        rank: the rank of this process.
        device: see `gloo_device`.
        limit: the limit of the wait for the other.
        timeout_s: how long a send may wait until the other accepts it, in seconds.
    """
    lower, upper = ends
    peer = upper if rank == lower else lower
    made: list[GlooDirection] = []
    for way in ("up", "down"):
        group = GlooGroup(f"{what}{lower} {way} {upper}", peers, ends, rank, device, limit)
        made.append(GlooDirection(group, peer, is_lower=peer == lower))
    out, back = made if rank == lower else made[::-1]
    return GlooLine(out, back, timeout_s)


class GlooTransport(ProcessGroupTransport):
    """The transport of processes that communicate over gloo, whatever device they compute on."""

    def __init__(self) -> None:
        super().__init__()
        self._all: GlooGroup | None = None  # a group of all ranks, created when it is first needed
        self._num_groups = 0

    def _connect(
        self, lines: GroupLines, layout: RankLayout, device: torch.device, limit: WaitLimit, *, around: bool
    ) -> None:
        peers, shared = self._peers_and_device()

        def line(lower: int, upper: int, what: str = "") -> GlooLine:
            lines.announce_wait(upper if self.rank == lower else lower)
            return make_line(what, peers, (lower, upper), self.rank, shared, limit, limit.timeout_s)

        if not layout.is_first:
            lines.below = line(layout.rank(layout.stage - 1), self.rank)
        if not layout.is_last:
            lines.above = line(self.rank, layout.rank(layout.stage + 1))
        if around and (layout.is_first or layout.is_last):
            lines.around = line(layout.rank(0), layout.rank(layout.num_stages - 1), "around ")

    def sum(self, tensor: Tensor, check: Callable[[], None]) -> Tensor:
        """See `Transport.sum`."""
        self._together(lambda group: group.allreduce(tensor), check)
        return tensor

    def broadcast(self, tensor: Tensor, source: int, check: Callable[[], None] | None = None) -> None:
        """See `Transport.broadcast`."""
        self._together(lambda group: group.broadcast(tensor, source), check)

    def _let_go(self) -> None:
        together, self._all = self._all, None
        if together is not None:
            together.close()

    def _peers_and_device(self) -> tuple[Peers, Any]:
        """Return the peers of the engine, and a new gloo device for their groups."""
        assert self._peers is not None, "call peers first"
        assert self._store is not None
        return self._peers, gloo_device(self._store)

    def _together(self, begin: Callable[[GlooGroup], dist.Work], check: Callable[[], None] | None) -> None:
        """Run a collective of all ranks in a group of its own, which can be aborted."""
        if self._all is None:
            peers, device = self._peers_and_device()
            self._num_groups += 1
            name, ranks = f"all {self._num_groups}", range(self.world_size)
            limit = WaitLimit(self._timeout_s, check or (lambda: None))

            def make() -> GlooGroup:
                return GlooGroup(name, peers, ranks, self.rank, device, limit)

            try:
                self._all = call_with_timeout(make, self._timeout_s, limit.check)
            except TimeoutError:
                raise StageError(f"not all processes have come within {self._timeout_s:g} s") from None
        try:
            wait_for_work(begin(self._all), check)
        except BaseException:
            self._all.abort()
            raise
