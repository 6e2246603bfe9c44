"""What crosses a link: parcels of tensors of agreed shapes and dtypes, each behind a small header.

::

    sender                                     receiver
    ──────                                     ────────
    1. header: kind, step, rows, which slots,  3. a thread waits for headers, of which many receives are posted
       busy time, window, checksum, and the
       shapes of the slots (int64)
    2. the tensors of these slots, as bytes,   4. and for the bytes that a header tells of; receives of the same
       behind one another                         size are posted ahead too
                                               5. the stage takes parcels from a queue, when it wants to

With gloo a posted receive tells that it is complete only when it is waited for, so a thread waits: the stage itself can
then ask whether something has come. And a sender keeps back what nobody has posted a receive for, which costs a round
trip; so receives lie ready for as many parcels as may be under way. Bytes of a size have a tag of their own: a receive that
was posted for a batch of another size just waits for the next of its own. NCCL has no tags and does not wait so; there
receives are posted one by one.

Nothing else ever crosses: no pickles, no dtypes and no numbers of dimensions that were not agreed upon.
"""

from __future__ import annotations

import itertools
import math
import queue
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import torch
import torch.distributed as dist
from torch import Tensor

from ...core import StageError

__all__ = ["Incoming", "Kind", "Outgoing", "Parcel", "Slot"]

_PREFIX = 7
_MOST_ROWS = 1 << 24
_MOST_BYTES = 1 << 35
_ALIGNED = 16  # bytes; a slot begins at a multiple of these

#: Receives that lie ready: of headers, and of bytes before anything is known of the sender's window.
_HEADERS_AHEAD, _FIRST_AHEAD = 80, 4


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
        shape: without the batch dimension; None for a size that differs from batch to batch.
        dtype: on the wire.
        target_dtype: what the receiver turns it into; None for as it comes.
        bare: the shape alone crosses; what the receiver gets has no values.
    """

    shape: tuple[int | None, ...]
    dtype: torch.dtype
    target_dtype: torch.dtype | None = None
    bare: bool = False

    @property
    def ndim(self) -> int:
        """Dimensions, with that of the batch."""
        return len(self.shape) + 1

    def fits(self, shape: Sequence[int]) -> bool:
        """Is this a shape that was agreed upon?"""
        return len(shape) == self.ndim and all(
            0 <= n <= _MOST_ROWS and e in (None, n) for n, e in zip(shape, (None, *self.shape), strict=True)
        )

    def num_bytes(self, shape: Sequence[int]) -> int:
        """Return the bytes that cross for a tensor of a shape."""
        return 0 if self.bare else math.prod(shape) * self.dtype.itemsize

    def __str__(self) -> str:
        sizes = ["rows", *("any" if n is None else str(n) for n in self.shape)]
        return f"({', '.join(sizes)}) {self.dtype}"


@dataclass(slots=True)
class Parcel:
    """What has come.

    Attributes:
        kind: what it is.
        step: of the batch that it belongs to.
        tensors: by slot, ``(rows, ...)``; None for slots that were left empty.
        busy_us: how long a step of the sender takes, without waiting, in microseconds; 0 if it does not say.
        window: how many parcels the sender may have under way; 0 if it does not say.
        checksum: of the examples that the sender has been given for this batch; 0 if it does not say.
        ready: on CUDA, when the tensors can be read.
    """

    kind: Kind
    step: int
    tensors: tuple[Tensor | None, ...] = ()
    busy_us: int = 0
    window: int = 0
    checksum: int = 0
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
        unsent: see below.

    Attributes:
        unsent: headers and tensors that may be on their way out of this process.
        sent_bytes: of all parcels so far, headers included.
        waited_s: spent waiting for what was unsent, in seconds.
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
        self.unsent = unsent
        self._works: deque[tuple[int, dist.Work, Tensor]] = deque()
        self._tagged = self._device.type == "cpu"
        self.sent_bytes = 0
        self.waited_s = 0.0

    def send(
        self,
        kind: Kind,
        step: int,
        tensors: Sequence[Tensor | None] = (),
        *,
        busy_us: int = 0,
        window: int = 0,
        checksum: int = 0,
    ) -> None:
        """Post a parcel; returns at once. What is given must not change any more.

        Raises:
            StageError: if a tensor has not the agreed shape.
        """
        full = [*tensors, *[None] * (len(self._slots) - len(tensors))]
        present = [(k, t) for k, t in enumerate(full) if t is not None]
        rows = present[0][1].shape[0] if present else 0
        shapes: list[int] = []
        for slot, t in zip(self._slots, full, strict=True):
            if t is not None and not slot.fits(t.shape):
                raise StageError(
                    f"a tensor of shape {tuple(t.shape)} was to cross the link, agreed upon was {slot}; give batches "
                    "like the example"
                )
            shapes += [0] * slot.ndim if t is None else t.shape
        mask = sum(1 << k for k, _ in present)
        prefix = [kind, step, rows, mask, busy_us, window, checksum]
        self._post(step, torch.tensor([*prefix, *shapes], dtype=torch.int64, device=self._device), 0)
        packed = _pack(
            [t.detach().to(self._device, self._slots[k].dtype) for k, t in present if not self._slots[k].bare]
        )
        if packed is not None:
            self._post(step, packed, _tag(packed.numel()))
        while len(self._works) > self.unsent:
            self._wait_oldest()

    def arrived(self, step: int) -> None:
        """Let go of what belongs to batches up to this one: the receiver has told that it has them."""
        while self._works and self._works[0][0] <= step:
            self._wait_oldest()

    def _post(self, step: int, tensor: Tensor, tag: int) -> None:
        work = dist.isend(tensor, self._peer, group=self._group, tag=tag if self._tagged else 0)
        assert work is not None
        self._works.append((step, work, tensor))
        self.sent_bytes += tensor.numel() * tensor.element_size()

    def flush(self) -> None:
        """Wait until everything has left."""
        while self._works:
            self._wait_oldest()

    def _wait_oldest(self) -> None:
        _, work, _ = self._works.popleft()
        begun = time.perf_counter()
        work.wait()
        self.waited_s += time.perf_counter() - begun


class Incoming:
    """The receiving end of a link: a thread that takes parcels as they come, and a queue.

    Args:
        group: of the two, for this direction.
        peer: rank of the sender.
        slots: agreed upon.
        device: of the stage.
        name: of the link, for errors.

    Attributes:
        ahead: receives of bytes that lie ready; grows with the sender's window.
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
        self._tagged = self._wire_device.type == "cpu"
        self._headers: deque[_Posted] = deque()
        self._ahead: dict[int, deque[_Posted]] = {}  # bytes, by tag
        self.ahead = _FIRST_AHEAD
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
        length = _PREFIX + sum(slot.ndim for slot in self._slots)
        while len(self._headers) < (_HEADERS_AHEAD if self._tagged else 1):
            header = torch.empty(length, dtype=torch.int64, device=self._wire_device)
            self._headers.append(self._post(header, 0))
        numbers = self._headers.popleft().wait().tolist()
        kind, step, rows, mask, busy_us, window, checksum = numbers[:_PREFIX]
        shapes = self._shapes(numbers[_PREFIX:], mask)
        sizes = [self._slots[k].num_bytes(shape) for k, shape in shapes.items()]
        fits = all(self._slots[k].fits(shape) for k, shape in shapes.items())
        known = kind in set(Kind) and 0 <= rows <= _MOST_ROWS and not mask >> len(self._slots)
        if not known or not fits or sum(sizes) > _MOST_BYTES:
            raise StageError(
                f"{self.name}: a header reads kind {kind}, {rows} rows, slots {mask:b}, which nobody agreed upon; "
                "do all processes run the same version?"
            )
        if window:
            self.ahead = max(self.ahead, window + 1)
        tensors = self._tensors(shapes)
        ready = None
        if self._device.type == "cuda":
            ready = torch.cuda.Event()
            ready.record()
        return Parcel(Kind(kind), step, tensors, busy_us, window, checksum, ready)

    def _shapes(self, numbers: list[int], mask: int) -> dict[int, list[int]]:
        """Return the shapes of the slots that are there."""
        shapes: dict[int, list[int]] = {}
        start = 0
        for k, slot in enumerate(self._slots):
            if mask >> k & 1:
                shapes[k] = numbers[start : start + slot.ndim]
            start += slot.ndim
        return shapes

    def _post(self, tensor: Tensor, tag: int) -> _Posted:
        work = dist.irecv(tensor, self._peer, group=self._group, tag=tag if self._tagged else 0)
        assert work is not None
        return _Posted(work, tensor)

    def _tensors(self, shapes: dict[int, list[int]]) -> tuple[Tensor | None, ...]:
        sizes = {k: self._slots[k].num_bytes(shape) for k, shape in shapes.items()}
        starts = list(itertools.accumulate((_padded(n) for n in sizes.values()), initial=0))
        packed = self._bytes(starts[-1], _tag(starts[-1])) if starts[-1] else None
        tensors: list[Tensor | None] = [None] * len(self._slots)
        for (k, shape), start in zip(shapes.items(), starts, strict=False):
            slot = self._slots[k]
            dtype = slot.target_dtype or slot.dtype
            if slot.bare:
                # One number, seen as a whole tensor: it has a shape and costs nothing.
                tensors[k] = torch.zeros((), dtype=dtype, device=self._device).expand(shape)
            elif packed is None or not sizes[k]:
                tensors[k] = torch.empty(shape, dtype=dtype, device=self._device)
            else:
                found = packed[start : start + sizes[k]].view(slot.dtype).view(shape)
                tensors[k] = found.to(self._device, dtype)
        return tuple(tensors)

    def _bytes(self, size: int, tag: int) -> Tensor:
        posted = self._ahead.setdefault(tag, deque())
        while len(posted) < (self.ahead + 1 if self._tagged else 1):
            posted.append(self._post(torch.empty(size, dtype=torch.uint8, device=self._wire_device), tag))
        found = posted.popleft().wait()
        if self._tagged:
            posted.append(self._post(torch.empty_like(found), tag))
        return found


@dataclass(frozen=True, slots=True)
class _Posted:
    """A receive, and where it writes to."""

    work: dist.Work
    tensor: Tensor

    def wait(self) -> Tensor:
        self.work.wait()
        return self.tensor


def _padded(size: int) -> int:
    return -(-size // _ALIGNED) * _ALIGNED


def _pack(tensors: Sequence[Tensor]) -> Tensor | None:
    """Return tensors as bytes behind one another, each padded; None if there are none."""
    parts: list[Tensor] = []
    for t in tensors:
        flat = t.contiguous().view(-1).view(torch.uint8)
        rest = _padded(flat.numel()) - flat.numel()
        parts += [flat, flat.new_zeros(rest)] if rest else [flat]
    if not any(part.numel() for part in parts):
        return None
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _tag(size: int) -> int:
    """Return the tag of so many bytes: 0 is that of headers."""
    return 1 + size // _ALIGNED
