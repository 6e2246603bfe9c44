"""What the transports over ``torch.distributed`` share: how ranks meet, and lines of two directions.

A line has a process group for each direction, so that one direction cannot block the other.
"""

from __future__ import annotations

import errno
import statistics
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import Store

from ....core import StageError
from ..layout import RankLayout
from .base import BrokenLine, HeaderCheck, WaitLimit
from .connections import Connections
from .ends import Direction, PostingSender, ThreadReceiver
from .rendezvous import own_store, rendezvous
from .timeout import call_with_timeout

__all__ = ["GroupLine", "GroupLines", "ProcessGroupTransport", "WallClock", "wait_for_work"]

_T = TypeVar("_T")

_PINGS = 5

#: How long a thread may take to notice that its direction was aborted, in seconds.
_PARTING_S = 2.0

#: How often a rank that waits for all others checks whether one has stopped, in seconds.
_POLL_S = 0.0005

#: The number of engines of this process so far: part of the names in the store.
_instances = 0


class WallClock:
    """The wall clock."""

    def now(self) -> float:
        """Return the time in seconds."""
        return time.perf_counter()

    def sleep(self, seconds: float) -> None:
        """Sleep."""
        time.sleep(seconds)


class GroupLine(ABC):
    """Both directions to a neighbour.

    Args:
        out, back: the directions to and from the neighbour.
        device: the device of tensors that are sent.
        timeout_s: how long to wait until the neighbour accepts something, in seconds.
    """

    def __init__(self, out: Direction, back: Direction, device: torch.device, timeout_s: float) -> None:
        self._out = out
        self._back = back
        self._device = device
        self._timeout_s = timeout_s
        self._sender: PostingSender | None = None
        self._receiver: ThreadReceiver | None = None

    @property
    def peer(self) -> int:
        """The rank of the neighbour."""
        return self._out.peer

    @abstractmethod
    def _make_sender(self) -> PostingSender:
        """Create the sending end."""

    @abstractmethod
    def _make_receiver(self, length: int, check: HeaderCheck, name: str) -> ThreadReceiver:
        """Create the receiving end."""

    def sender(self) -> PostingSender:
        """See `Line.sender`."""
        self._sender = self._make_sender()
        return self._sender

    def receiver(self, length: int, check: HeaderCheck, name: str) -> ThreadReceiver:
        """See `Line.receiver`."""
        self._receiver = self._make_receiver(length, check, name)
        return self._receiver

    def ping(self) -> float:
        """Send a number, wait until it comes back, and return how long that took, in seconds."""
        ball = self._ball()
        start = time.perf_counter()
        self._wait(self._out.send(ball, 0))
        self._wait(self._back.receive(ball, 0))
        int(ball.item())  # waits for an accelerator, on which the receive is asynchronous
        return time.perf_counter() - start

    def pong(self) -> None:
        """Receive a number, and send it back."""
        ball = self._ball()
        self._wait(self._back.receive(ball, 0))
        self._wait(self._out.send(ball, 0))

    def round_trip_s(self, *, is_lower: bool) -> float:
        """Return the median of some pings, in seconds; 0 in the upper rank, which answers them. Blocks; both must call it."""
        if not is_lower:
            for _ in range(_PINGS + 1):
                self.pong()
            return 0.0
        # The first ping also makes the connection, so it is not counted.
        return statistics.median([self.ping() for _ in range(_PINGS + 1)][1:])

    def close(self) -> None:
        """End all waits, and release threads and groups."""
        receiver = self._receiver
        if receiver is None or not receiver.join(0.0):
            for direction in (self._out, self._back):
                direction.abort()
            if receiver is not None:
                receiver.join(_PARTING_S)
        if self._sender is not None:
            self._sender.forget()
        self._out.close()
        self._back.close()

    def _wait(self, work: dist.Work) -> None:
        work.wait(timedelta(seconds=self._timeout_s))

    def _ball(self) -> Tensor:
        return torch.zeros(1, dtype=torch.int64, device=self._device)


class GroupLines:
    """The lines of a process to its neighbours; see `Lines`.

    Args:
        limit: the limit of waits.
        let_go: releases what else belongs to the lines.
    """

    def __init__(self, limit: WaitLimit, let_go: Callable[[], None] = lambda: None) -> None:
        self._let_go = let_go
        self.below: GroupLine | None = None
        self.above: GroupLine | None = None
        self.around: GroupLine | None = None
        self.replicas: dist.ProcessGroup | None = None
        self.is_closed = False
        self._limit = limit
        self._waited_for = 0

    @property
    def _all(self) -> list[GroupLine]:
        return [line for line in (self.below, self.above, self.around) if line is not None]

    def make(self, make: Callable[[GroupLines], None]) -> None:
        """Run a function that creates the lines, within the limit.

        Raises:
            BrokenLine: if it takes too long, or fails.
        """

        def made() -> None:
            make(self)
            if self.is_closed:
                self.close()  # the call has taken too long, and its caller has given up

        try:
            self._within_limit(made)
        except BaseException:
            self.close()
            raise

    def round_trip_s(self) -> float:
        """See `Lines.round_trip_s`."""
        return self._within_limit(self._measured)

    def announce_wait(self, rank: int) -> None:
        """Announce which rank is waited for."""
        self._waited_for = rank
        self._limit.announce_wait(rank)

    def close(self) -> None:
        """See `Lines.close`."""
        self.is_closed = True
        for line in self._all:
            line.close()
        self._let_go()
        replicas, self.replicas = self.replicas, None
        if replicas is not None and dist.is_initialized():
            with suppress(RuntimeError, ValueError):  # the program may have destroyed all groups
                dist.destroy_process_group(replicas)

    def _measured(self) -> float:
        if self.below is not None:
            self.announce_wait(self.below.peer)
            self.below.round_trip_s(is_lower=False)
        if self.above is None:
            return 0.0
        self.announce_wait(self.above.peer)
        return self.above.round_trip_s(is_lower=True)

    def _within_limit(self, call: Callable[[], _T]) -> _T:
        try:
            return call_with_timeout(call, self._limit.timeout_s, self._limit.check)
        except TimeoutError as error:
            raise BrokenLine(self._waited_for, "it takes too long", is_late=True) from error
        except StageError:
            raise
        except RuntimeError as error:
            if "Too many open files" in str(error):
                raise OSError(errno.EMFILE, "Too many open files: allow more, as in ulimit -n 4096") from None
            raise BrokenLine(self._waited_for, str(error)) from error
        finally:
            self._limit.announce_wait(None)


class ProcessGroupTransport(ABC):
    """The transport of processes that have joined a process group of ``torch.distributed``; see `Transport`.

    Attributes:
        rank: the number of this process.
        world_size: the number of processes.
        clock: the wall clock.
    """

    def __init__(self) -> None:
        self.rank = dist.get_rank()
        self.world_size = dist.get_world_size()
        self.clock = WallClock()
        self._timeout_s = 300.0
        # Those of the engine that was created last:
        self._store: Store | None = None
        self._peers: Connections | None = None

    @abstractmethod
    def _connect(
        self, lines: GroupLines, layout: RankLayout, device: torch.device, limit: WaitLimit, *, around: bool
    ) -> None:
        """Create the lines to the neighbours, and one between the first stage and the last.

        Blocks until all ranks have called it; runs in a thread of its own.
        """

    def peers(self, greeting: str, timeout_s: float = 300.0) -> Connections:
        """See `Transport.peers`."""
        global _instances
        _instances += 1
        self._timeout_s = timeout_s
        self._store = own_store(f"synthgrad/{_instances}", timeout_s)
        self._peers = rendezvous(self._store, self.rank, self.world_size, greeting, timeout_s)
        return self._peers

    def lines(
        self,
        layout: RankLayout,
        device: torch.device,
        limit: WaitLimit = WaitLimit(),  # noqa: B008
        *,
        around: bool = False,
    ) -> GroupLines:
        """See `Transport.lines`."""
        lines = GroupLines(limit, self._let_go)

        def make(lines: GroupLines) -> None:
            self._connect(lines, layout, device, limit, around=around)
            if layout.num_replicas > 1:
                lines.announce_wait(layout.rank(layout.stage))
                for stage in range(layout.num_stages):
                    ranks = [stage * layout.num_replicas + k for k in range(layout.num_replicas)]
                    group = dist.new_group(ranks, timeout=timedelta(seconds=limit.timeout_s))  # pyright: ignore
                    if isinstance(group, dist.ProcessGroup) and layout.stage == stage:
                        lines.replicas = group

        lines.make(make)
        return lines

    @abstractmethod
    def _let_go(self) -> None:
        """Release what belongs to the transport; it is created again when it is needed."""

    @abstractmethod
    def sum(self, tensor: Tensor, check: Callable[[], None]) -> Tensor:
        """See `Transport.sum`."""

    @abstractmethod
    def broadcast(self, tensor: Tensor, source: int, check: Callable[[], None] | None = None) -> None:
        """See `Transport.broadcast`."""


def wait_for_work(work: dist.Work | None, check: Callable[[], None] | None) -> None:
    """Wait for a collective of all ranks, and check repeatedly whether to go on waiting."""
    assert work is not None
    while not work.is_completed():
        if check is not None:
            check()
        time.sleep(_POLL_S)
    work.wait()  # complete by now; raises the error of a collective that has failed
