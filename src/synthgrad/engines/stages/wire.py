"""What crosses a link: parcels of tensors of agreed shapes and dtypes, each behind a small header.

::

    sender                                   receiver
    ──────                                   ────────
    1. header: kind, step, rows, which slots, busy time (int64)
    2. one tensor for each slot named        3. a thread takes both and queues them
                                             4. the stage takes them from the queue, when it wants to

With gloo a posted receive tells that it is complete only when it is waited for, so a thread waits: the stage itself can
then ask whether something has come. Nothing else ever crosses: no pickles, no shapes that were not agreed upon.
"""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import torch
import torch.distributed as dist
from torch import Tensor

from ...core import StageError

__all__ = ["Incoming", "Kind", "Outgoing", "Parcel", "Slot"]

_HEADER = 5
_MOST_ROWS = 1 << 24


class Kind(IntEnum):
    """What a parcel is."""

    BATCH = 1  # up: an activation to learn from
    MESSAGE = 2  # down: what came back for a batch, or that nothing will
    PREDICT = 3  # up: an activation to run forward only
    END = 4  # both ways: nothing will follow


@dataclass(frozen=True, slots=True)
class Slot:
    """A tensor that a parcel may hold.

    Attributes:
        shape: without the batch dimension.
        dtype: on the wire.
        target_dtype: what the receiver turns it into; None for as it comes.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    target_dtype: torch.dtype | None = None


@dataclass(slots=True)
class Parcel:
    """What has come.

    Attributes:
        kind: what it is.
        step: of the batch that it belongs to.
        tensors: by slot, ``(rows, ...)``; None for slots that were left empty.
        busy_us: how long a step of the sender takes, without waiting, in microseconds; 0 if it does not say.
        ready: on CUDA, when the tensors can be read.
    """

    kind: Kind
    step: int
    tensors: tuple[Tensor | None, ...] = ()
    busy_us: int = 0
    ready: torch.cuda.Event | None = None


def _wire_device(group: dist.ProcessGroup, device: torch.device) -> torch.device:
    """Return where tensors must lie to be sent: gloo takes them from the host's memory."""
    return device if dist.get_backend(group) == "nccl" else torch.device("cpu")


class Outgoing:
    """The sending end of a link. Never waits for the receiver, unless much is still unsent.

    Args:
        group: of the two, for this direction.
        peer: rank of the receiver.
        slots: agreed upon.
        device: of the stage.
        unsent: parcels that may be on their way out of this process.

    Attributes:
        sent_bytes: of all parcels so far, headers included.
    """

    def __init__(
        self,
        group: dist.ProcessGroup,
        peer: int,
        slots: Sequence[Slot],
        device: torch.device,
        unsent: int = 16,
    ) -> None:
        self._group = group
        self._peer = peer
        self._slots = tuple(slots)
        self._device = _wire_device(group, device)
        self._unsent = unsent
        self._works: deque[list[tuple[dist.Work, Tensor]]] = deque()
        self.sent_bytes = 0

    def send(self, kind: Kind, step: int, tensors: Sequence[Tensor | None] = (), busy_us: int = 0) -> None:
        """Post a parcel; returns at once. What is given must not change any more.

        Raises:
            StageError: if a tensor has not the agreed shape.
        """
        full = [*tensors, *[None] * (len(self._slots) - len(tensors))]
        present = [(k, t) for k, t in enumerate(full) if t is not None]
        rows = present[0][1].shape[0] if present else 0
        for k, t in present:
            if tuple(t.shape) != (rows, *self._slots[k].shape):
                raise StageError(
                    f"a tensor of shape {tuple(t.shape)} was to cross the link, agreed upon was "
                    f"(rows, {', '.join(map(str, self._slots[k].shape))}) with {rows} rows; give batches like the example"
                )
        mask = sum(1 << k for k, _ in present)
        header = torch.tensor([kind, step, rows, mask, busy_us], device=self._device)
        parts = [header]
        parts += [t.detach().to(self._device, self._slots[k].dtype).contiguous() for k, t in present]
        works: list[tuple[dist.Work, Tensor]] = []
        for part in parts:
            work = dist.isend(part, self._peer, group=self._group)
            assert work is not None
            works.append((work, part))
            self.sent_bytes += part.numel() * part.element_size()
        self._works.append(works)
        while len(self._works) > self._unsent:
            self._wait_oldest()

    def flush(self) -> None:
        """Wait until everything has left."""
        while self._works:
            self._wait_oldest()

    def _wait_oldest(self) -> None:
        for work, _ in self._works.popleft():
            work.wait()


class Incoming:
    """The receiving end of a link: a thread that takes parcels as they come, and a queue.

    Args:
        group: of the two, for this direction.
        peer: rank of the sender.
        slots: agreed upon.
        device: of the stage.
        name: of the link, for errors.
    """

    def __init__(
        self, group: dist.ProcessGroup, peer: int, slots: Sequence[Slot], device: torch.device, name: str
    ) -> None:
        self._group = group
        self._peer = peer
        self._slots = tuple(slots)
        self._device = device
        self._wire_device = _wire_device(group, device)
        self.name = name
        self._queue: queue.SimpleQueue[Parcel | BaseException] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=f"synthgrad {name}", daemon=True)

    def start(self) -> None:
        """Begin to receive."""
        self._thread.start()

    def join(self, timeout_s: float) -> bool:
        """Wait for the thread to end, which it does at the end of the link; return whether it has."""
        if self._thread.is_alive():
            self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def get(self, timeout_s: float | None) -> Parcel | None:
        """Take the oldest parcel; None if there is none within the timeout. None for no waiting at all.

        Raises:
            Exception: what ended the thread.
        """
        try:
            found = self._queue.get(block=timeout_s is not None, timeout=timeout_s)
        except queue.Empty:
            return None
        if isinstance(found, BaseException):
            self._queue.put(found)  # it stays broken
            raise found
        if found.ready is not None:
            torch.cuda.current_stream().wait_event(found.ready)
            for t in found.tensors:
                if t is not None:
                    t.record_stream(torch.cuda.current_stream())
        return found

    def _run(self) -> None:
        try:
            if self._device.type == "cuda":
                with torch.cuda.device(self._device), torch.cuda.stream(torch.cuda.Stream(self._device)):
                    self._receive_all()
            else:
                self._receive_all()
        except Exception as error:  # told to the stage, which is in another thread
            self._queue.put(error)

    def _receive_all(self) -> None:
        kind = None
        while kind is not Kind.END:
            parcel = self._receive()
            kind = parcel.kind
            self._queue.put(parcel)

    def _receive(self) -> Parcel:
        header = torch.empty(_HEADER, dtype=torch.int64, device=self._wire_device)
        dist.recv(header, self._peer, group=self._group)
        kind, step, rows, mask, busy_us = header.tolist()
        if kind not in set(Kind) or not 0 <= rows <= _MOST_ROWS or mask >> len(self._slots):
            raise StageError(
                f"{self.name}: a header reads kind {kind}, {rows} rows, slots {mask:b}, which nobody agreed upon; "
                "do all processes run the same version?"
            )
        tensors = [self._tensor(rows, slot) if mask >> k & 1 else None for k, slot in enumerate(self._slots)]
        ready = None
        if self._device.type == "cuda":
            ready = torch.cuda.Event()
            ready.record()
        return Parcel(Kind(kind), step, tuple(tensors), busy_us, ready)

    def _tensor(self, rows: int, slot: Slot) -> Tensor:
        found = torch.empty((rows, *slot.shape), dtype=slot.dtype, device=self._wire_device)
        dist.recv(found, self._peer, group=self._group)
        return found.to(self._device, slot.target_dtype or slot.dtype)
