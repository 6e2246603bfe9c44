"""What the transports over ``torch.distributed`` share: groups, the store, sends, and a thread that receives.

A line has a process group for each direction, so that neither can hold the other up. What is sent is posted and
forgotten until its buffers are many. A thread waits for what comes, so that the stage can ask whether something has.
"""

from __future__ import annotations

import queue
import statistics
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import distributed_c10d
from torch.distributed.device_mesh import init_device_mesh

from ..layout import Layout
from .base import Check, Received, Receiver

__all__ = ["GroupLine", "GroupLines", "PostingSender", "ProcessGroupTransport", "ThreadReceiver", "WallClock"]

#: Threads wait in receives as long as a run lasts: that a peer is gone is found out in other ways.
_FOREVER = timedelta(days=7)

#: How often a rank that waits for a sum asks whether another has stopped, in seconds.
_POLL_S = 0.0005

_PINGS = 5

_instances = 0


class WallClock:
    """The time of the wall."""

    def now(self) -> float:
        """Return the time in seconds."""
        return time.perf_counter()

    def sleep(self, seconds: float) -> None:
        """Sleep."""
        time.sleep(seconds)


class _GroupStore:
    """A part of the store that the process group has met in."""

    def __init__(self, name: str) -> None:
        whole = distributed_c10d._get_default_store()  # pyright: ignore[reportPrivateUsage]
        self._store = distributed_c10d.PrefixStore(name, whole)

    def set(self, key: str, value: str) -> None:
        self._store.set(key, value)

    def get(self, key: str) -> str:
        return self._store.get(key).decode()

    def check(self, key: str) -> bool:
        return self._store.check([key])

    def compare_set(self, key: str, expected: str, value: str) -> None:
        self._store.compare_set(key, expected, value)


class PostingSender:
    """Posts sends, and keeps their buffers until they have left.

    Args:
        group: of the two ranks, for this direction.
        peer: rank of the receiver.
        device: where tensors must lie to be sent.
        tag: of a body of so many bytes; headers have tag 0.

    Attributes:
        waited_s: time spent because too much was still unsent, in seconds.
    """

    def __init__(
        self, group: dist.ProcessGroup, peer: int, device: torch.device, tag: Callable[[int], int]
    ) -> None:
        self._group = group
        self._peer = peer
        self._device = device
        self._tag = tag
        self._most = 16  # headers and bodies that may be unsent
        self._works: deque[tuple[int, dist.Work, Tensor]] = deque()
        self.waited_s = 0.0

    def send(self, header: Sequence[int], body: Tensor | None, number: int) -> None:
        """See `Sender.send`."""
        self._post(number, torch.tensor(header, dtype=torch.int64, device=self._device), 0)
        if body is not None:
            self._post(number, body.to(self._device), self._tag(body.numel()))
        while len(self._works) > self._most:
            self._wait_oldest()

    def make_room(self, num_parcels: int) -> None:
        """See `Sender.make_room`: a header and a body for each, and some more."""
        self._most = max(self._most, 2 * num_parcels + 8)

    def arrived(self, number: int) -> None:
        """See `Sender.arrived`."""
        while self._works and self._works[0][0] <= number:
            self._wait_oldest()

    def flush(self) -> None:
        """See `Sender.flush`."""
        while self._works:
            self._wait_oldest()

    def _post(self, number: int, tensor: Tensor, tag: int) -> None:
        work = dist.isend(tensor, self._peer, group=self._group, tag=tag)
        assert work is not None
        self._works.append((number, work, tensor))

    def _wait_oldest(self) -> None:
        _, work, _ = self._works.popleft()
        begun = time.perf_counter()
        work.wait()
        self.waited_s += time.perf_counter() - begun


@dataclass(frozen=True, slots=True)
class _Taken:
    """What the thread has received, and on CUDA when it can be read."""

    received: Received
    ready: torch.cuda.Event | None


class ThreadReceiver(ABC):
    """A thread that receives, and a queue from which the stage takes.

    Args:
        group: of the two ranks, for this direction.
        peer: rank of the sender.
        device: where tensors must lie to be received.
        length: numbers in a header.
        check: looks at every header, in the thread.
        name: of the direction.
    """

    def __init__(
        self, group: dist.ProcessGroup, peer: int, device: torch.device, length: int, check: Check, name: str
    ) -> None:
        self._group = group
        self._peer = peer
        self._device = device
        self._length = length
        self._check = check
        self._queue: queue.SimpleQueue[_Taken | BaseException] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=f"synthgrad {name}", daemon=True)

    @abstractmethod
    def make_room(self, num_parcels: int) -> None:
        """See `Receiver.make_room`."""

    @abstractmethod
    def _header(self) -> list[int]:
        """Wait for the next header."""

    @abstractmethod
    def _body(self, size: int) -> Tensor:
        """Wait for a body of so many bytes, at least one."""

    def _here(self) -> AbstractContextManager[object]:
        """Return the context in which the thread works."""
        return nullcontext()

    def _event(self) -> torch.cuda.Event | None:
        """Return when the body that was received last can be read; None for now."""
        return None

    def start(self) -> None:
        """See `Receiver.start`."""
        self._thread.start()

    def join(self, timeout_s: float) -> bool:
        """See `Receiver.join`: the thread ends with the direction."""
        if self._thread.is_alive():
            self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def get(self, timeout_s: float | None) -> Received | None:
        """See `Receiver.get`."""
        try:
            found = self._queue.get(block=timeout_s is not None, timeout=timeout_s)
        except queue.Empty:
            return None
        if isinstance(found, BaseException):
            self._queue.put(found)  # it stays broken
            raise found
        if found.ready is not None:
            # The bytes were received on the thread's stream: the stage's must not read them before, and the allocator
            # must not give them away while the stage's still does.
            torch.cuda.current_stream(self._device).wait_event(found.ready)
            if found.received.body is not None:
                found.received.body.record_stream(torch.cuda.current_stream(self._device))
        return found.received

    def _run(self) -> None:
        try:
            with self._here():
                more = True
                while more:
                    header = self._header()
                    more = self._check(header)
                    body = self._body(header[0]) if header[0] else None
                    self._queue.put(_Taken(Received(header, body), self._event()))
        except Exception as error:  # told to the stage, which is in another thread
            self._queue.put(error)


class GroupLine(ABC):
    """Both directions to a neighbour.

    Args:
        out, back: groups for what is sent and for what comes.
        peer: rank of the neighbour.
        device: where tensors must lie to be sent.
    """

    def __init__(
        self, out: dist.ProcessGroup, back: dist.ProcessGroup, peer: int, device: torch.device
    ) -> None:
        self._out = out
        self._back = back
        self._peer = peer
        self._device = device

    @abstractmethod
    def sender(self) -> PostingSender:
        """See `Line.sender`."""

    @abstractmethod
    def receiver(self, length: int, check: Check, name: str) -> Receiver:
        """See `Line.receiver`."""

    def ping(self) -> float:
        """Send a number, wait for it to come back, and return how long that took, in seconds."""
        ball = self._ball()
        start = time.perf_counter()
        dist.send(ball, self._peer, group=self._out)
        dist.recv(ball, self._peer, group=self._back)
        int(ball.item())  # on an accelerator: when it is there
        return time.perf_counter() - start

    def pong(self) -> None:
        """Send back what comes."""
        ball = self._ball()
        dist.recv(ball, self._peer, group=self._back)
        dist.send(ball, self._peer, group=self._out)

    def _ball(self) -> Tensor:
        return torch.zeros(1, dtype=torch.int64, device=self._device)


@dataclass(frozen=True, slots=True)
class GroupLines:
    """What connects a process with its neighbours; see `Lines`."""

    below: GroupLine | None
    above: GroupLine | None
    replicas: dist.ProcessGroup | None

    def round_trip_s(self) -> float:
        """See `Lines.round_trip_s`."""
        if self.below is not None:
            for _ in range(_PINGS + 1):
                self.below.pong()
        if self.above is None:
            return 0.0
        above = self.above
        # The first makes the connection.
        return statistics.median([above.ping() for _ in range(_PINGS + 1)][1:])


class ProcessGroupTransport(ABC):
    """Processes that have joined a group of ``torch.distributed``; see `Transport`.

    Attributes:
        rank: number of this process.
        world_size: number of processes.
        clock: that of the wall.
    """

    def __init__(self) -> None:
        self.rank = dist.get_rank()
        self.world_size = dist.get_world_size()
        self.clock = WallClock()

    @abstractmethod
    def _line(
        self, out: dist.ProcessGroup, back: dist.ProcessGroup, peer: int, device: torch.device
    ) -> GroupLine:
        """Return the line to a neighbour over two groups."""

    def store(self) -> _GroupStore:
        """See `Transport.store`."""
        global _instances
        _instances += 1
        return _GroupStore(f"synthgrad/{_instances}")

    def lines(self, layout: Layout, device: torch.device) -> GroupLines:
        """See `Transport.lines`: every process makes the groups of all, in one order."""
        mine: dict[str, GroupLine] = {}
        for stage in range(layout.num_stages - 1):
            for replica in range(layout.num_replicas):
                pair = [(stage + k) * layout.num_replicas + replica for k in (0, 1)]
                up, down = (
                    dist.new_group(pair, timeout=_FOREVER)  # pyright: ignore[reportUnknownMemberType]
                    for _ in range(2)
                )
                if not isinstance(up, dist.ProcessGroup) or not isinstance(down, dist.ProcessGroup):
                    continue  # of two others
                if layout.stage == stage:
                    mine["above"] = self._line(up, down, pair[1], device)
                else:
                    mine["below"] = self._line(down, up, pair[0], device)
        replicas = None
        if layout.num_replicas > 1:
            shape = (layout.num_stages, layout.num_replicas)
            mesh = init_device_mesh(device.type, shape, mesh_dim_names=("stage", "replica"))
            replicas = mesh.get_group("replica")
        return GroupLines(mine.get("below"), mine.get("above"), replicas)

    def sum(self, tensor: Tensor, check: Callable[[], None]) -> Tensor:
        """See `Transport.sum`."""
        work = dist.all_reduce(tensor, async_op=True)
        assert work is not None
        while not work.is_completed():
            check()
            time.sleep(_POLL_S)
        work.wait()
        return tensor

    def broadcast(self, tensor: Tensor, source: int) -> None:
        """See `Transport.broadcast`."""
        dist.broadcast(tensor, source)
