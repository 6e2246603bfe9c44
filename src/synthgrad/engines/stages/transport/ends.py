"""The two ends of a direction over ``torch.distributed``.

A sender that posts sends, and a receiver with a thread.

A posted send returns at once; its buffer is kept until it has been sent. A thread waits for parcels, so that
the stage can ask at any time whether one has arrived.
"""

from __future__ import annotations

import queue
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from .base import BrokenLine, HeaderCheck, RawParcel

__all__ = ["FOREVER", "Direction", "PostingSender", "ThreadReceiver"]

#: The timeout of a receive. A thread waits in receives as long as a run lasts: `Connections` notices if a peer is gone,
#: and `Direction.abort` ends the wait.
FOREVER = timedelta(days=7)


class Direction(Protocol):
    """One direction between two ranks: a process group of the two.

    Attributes:
        peer: the rank of the other.
    """

    @property
    def peer(self) -> int: ...

    def send(self, tensor: Tensor, tag: int) -> dist.Work:
        """Post a send to the peer."""
        ...

    def receive(self, tensor: Tensor, tag: int) -> dist.Work:
        """Post a receive from the peer."""
        ...

    def abort(self) -> None:
        """End all waits in this direction, in this process, with an error."""
        ...

    def close(self) -> None:
        """Release the group, with its threads and connections. Nothing may wait in it any more."""
        ...


class PostingSender:
    """Posts sends, and keeps their buffers until they have been sent.

    Args:
        direction: the direction to the receiver.
        device: the device from which tensors are sent.
        tag: returns the tag of a body of a given size; headers have tag 0.
        timeout_s: how long to wait until the receiver accepts something, in seconds.

    Attributes:
        waited_s: the time spent waiting because too much was unsent, in seconds.
    """

    def __init__(
        self, direction: Direction, device: torch.device, tag: Callable[[int], int], timeout_s: float
    ) -> None:
        self._direction = direction
        self._device = device
        self._tag = tag
        self._timeout_s = timeout_s
        self._most = 16  # the number of headers and bodies that may be unsent
        self._works: deque[tuple[int, dist.Work, Tensor]] = deque()
        self.waited_s = 0.0

    def send(self, header: Sequence[int], body: Tensor | None, number: int) -> None:
        """See `Sender.send`."""
        self._post(number, torch.tensor(header, dtype=torch.int64, device=self._device), 0)
        if body is not None:
            self._post(number, body.to(self._device), self._tag(body.numel()))
        while len(self._works) > self._most:
            self._wait_oldest()  # the receiver is far behind: wait, rather than fill the memory

    def make_room(self, num_parcels: int) -> None:
        """See `Sender.make_room`: a header and a body for each parcel, and some more."""
        self._most = max(self._most, 2 * num_parcels + 8)

    def arrived(self, number: int) -> None:
        """See `Sender.arrived`."""
        while self._works and self._works[0][0] <= number:
            self._wait_oldest()

    def flush(self) -> None:
        """See `Sender.flush`."""
        while self._works:
            self._wait_oldest()

    def forget(self) -> None:
        """Drop everything that has not been sent yet."""
        self._works.clear()

    def _post(self, number: int, tensor: Tensor, tag: int) -> None:
        try:
            work = self._direction.send(tensor, tag)
        except RuntimeError as error:
            raise BrokenLine(self._direction.peer, str(error)) from error
        self._works.append((number, work, tensor))  # the buffer must live until the send is complete

    def _wait_oldest(self) -> None:
        _, work, _ = self._works.popleft()
        begun = time.perf_counter()
        try:
            work.wait(timedelta(seconds=self._timeout_s))
        except RuntimeError as error:
            is_late = time.perf_counter() - begun >= self._timeout_s
            raise BrokenLine(self._direction.peer, str(error), is_late=is_late) from error
        finally:
            self.waited_s += time.perf_counter() - begun


@dataclass(frozen=True, slots=True)
class _QueuedParcel:
    """A parcel that the thread has received; on CUDA with an event after which it can be read."""

    received: RawParcel
    ready: torch.cuda.Event | None


class ThreadReceiver(ABC):
    """A receiver with a thread, and a queue from which the stage reads.

    Args:
        direction: the direction from the sender.
        device: the device on which tensors are received.
        length: the length of a header.
        check: checks every header, in the thread.
        name: the name of the direction.
    """

    def __init__(
        self, direction: Direction, device: torch.device, length: int, check: HeaderCheck, name: str
    ) -> None:
        self._direction = direction
        self._device = device
        self._length = length
        self._check = check
        self._queue: queue.SimpleQueue[_QueuedParcel | BaseException] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=f"synthgrad {name}", daemon=True)

    @abstractmethod
    def make_room(self, num_parcels: int) -> None:
        """See `Receiver.make_room`."""

    @abstractmethod
    def _header(self) -> list[int]:
        """Wait for the next header."""

    @abstractmethod
    def _body(self, size: int) -> Tensor:
        """Wait for a body of ``size`` bytes, at least one."""

    @abstractmethod
    def _forget(self) -> None:
        """Drop the receives that are still posted, at the end."""

    def _here(self) -> AbstractContextManager[object]:
        """Return the context in which the thread runs."""
        return nullcontext()

    def _event(self) -> torch.cuda.Event | None:
        """Return an event after which the last body can be read, or None if it can be read now."""
        return None

    def start(self) -> None:
        """See `Receiver.start`."""
        self._thread.start()

    def join(self, timeout_s: float) -> bool:
        """See `Receiver.join`: the thread ends with the direction."""
        if self._thread.is_alive():
            self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def get(self, timeout_s: float | None) -> RawParcel | None:
        """See `Receiver.get`."""
        try:
            found = self._queue.get(block=timeout_s is not None, timeout=timeout_s)
        except queue.Empty:
            return None
        if isinstance(found, BaseException):
            self._queue.put(found)  # the direction stays broken, so the next call raises the error too
            raise found
        if found.ready is not None:
            # The bytes were received on the thread's stream. The stage's stream must not read them before they have
            # arrived, and the allocator must not reuse their memory while the stage's stream still reads them.
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
                    self._queue.put(_QueuedParcel(RawParcel(header, body), self._event()))
        except Exception as error:  # passed on to the stage, which runs in another thread
            self._queue.put(error)
        finally:
            self._forget()
