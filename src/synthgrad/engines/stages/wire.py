"""What crosses a link: parcels of tensors of agreed shapes and dtypes, each behind a small header.

::

    header   bytes of the body │ kind, step, rows, which slots, busy time, window, checksum │ shapes of the slots
    body     the tensors of these slots as bytes, by their codecs, one behind another, each padded

A header has as many numbers (int64) in every parcel of a link. Nothing else ever crosses: no pickles, no dtypes and no
numbers of dimensions that were not agreed upon. How headers and bodies get to the other side is the transport's concern.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import torch
from torch import Tensor

from ...core import CutError, Decoupled, Site, StageError
from .codecs import Codec
from .codecs.casting import Cast
from .transport import ALIGNED, Line, RawParcel, Sender

__all__ = ["FORMAT", "Incoming", "ParcelKind", "Outgoing", "Parcel", "Slot", "output_slot", "slot_for"]

#: Changes with headers, bodies and what the kinds of parcels mean.
FORMAT = 2

_PREFIX = 8
_MOST_ROWS = 1 << 24
_MOST_BYTES = 1 << 35
_MOST_WINDOW = 1 << 16


class ParcelKind(IntEnum):
    """What a parcel is."""

    BATCH = 1  # up: an activation to learn from
    MESSAGE = 2  # down: what came back for a batch, or that nothing will
    PREDICT = 3  # up: an activation to run forward only
    END = 4  # both ways: nothing will follow; its step is the number of batches that the sender has been through
    MARK = 5  # both ways: what was sent before it belongs to the state that is being saved


@dataclass(frozen=True, slots=True)
class Slot:
    """A tensor that a parcel may hold.

    Attributes:
        shape: without the batch dimension; None for a size that differs from batch to batch.
        dtype: what the receiver gets.
        codec: what the tensor is on the wire; None for as it is, in ``dtype``.
        bare: the shape alone crosses; what the receiver gets has no values.
    """

    shape: tuple[int | None, ...]
    dtype: torch.dtype
    codec: Codec | None = None
    shape_only: bool = False

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
        return 0 if self.shape_only else self._codec.num_bytes(shape)

    def encode(self, tensor: Tensor) -> Tensor:
        """Return the bytes that cross for a tensor, ``(n,)`` uint8.

        Raises:
            StageError: if the codec makes other bytes than it says.
        """
        data, expected = self._codec.encode(tensor.detach()), self.num_bytes(tensor.shape)
        if data.dtype != torch.uint8 or data.shape != (expected,):
            raise StageError(
                f"codec '{self._codec.name}' made a {data.dtype} of shape {tuple(data.shape)} of a tensor of shape "
                f"{tuple(tensor.shape)}, expected {expected} bytes (uint8): encode and num_bytes must agree"
            )
        return data

    def decode(self, data: Tensor, shape: Sequence[int], device: torch.device) -> Tensor:
        """Return the tensor that bytes stand for, ``(rows, ...)`` on a device."""
        if self.shape_only:
            # One number, seen as a whole tensor: it has a shape and costs nothing.
            return torch.zeros((), dtype=self.dtype, device=device).expand(tuple(shape))
        if not data.numel():
            return torch.empty(tuple(shape), dtype=self.dtype, device=device)
        return self._codec.decode(data, shape, device, self.dtype)

    @property
    def _codec(self) -> Codec:
        return self.codec or Cast(self.dtype)

    def __str__(self) -> str:
        sizes = ["rows", *("any" if n is None else str(n) for n in self.shape)]
        return f"({', '.join(sizes)}) {self.dtype}"


def slot_for(site: Site) -> Slot:
    """Return what crosses a cut: the number of features is agreed upon, other sizes may differ from batch to batch."""
    if len(site.shape) < 2:
        return Slot((), site.dtype)
    return Slot(
        tuple(n if k == site.features_at else None for k, n in enumerate(site.shape) if k), site.dtype
    )


def output_slot(net: Decoupled) -> Slot | None:
    """Return the slot of the output error, which travels down with the messages; None where no rule needs it.

    Raises:
        CutError: if the network returns more than one tensor that could have one.
    """
    if not net.needs_output_error:
        return None
    if len(net.graph.outputs) != 1:
        raise CutError(
            f"a rule needs the network's output error, and the network returns {len(net.graph.outputs)} floating tensors "
            "with a gradient; let it return one, and compute the loss outside of it"
        )
    ((shape, dtype),) = net.graph.outputs
    return Slot((None,) * (len(shape) - 1), dtype)


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
    """

    kind: ParcelKind
    step: int
    tensors: tuple[Tensor | None, ...] = ()
    busy_us: int = 0
    window: int = 0
    checksum: int = 0


class Outgoing:
    """The sending end of a link. Never waits for the receiver, unless much is still unsent.

    Args:
        sender: of this direction.
        slots: agreed upon.

    Attributes:
        sender: of this direction.
        sent_bytes: of all parcels so far, headers included.
    """

    def __init__(self, sender: Sender, slots: Sequence[Slot]) -> None:
        self.sender = sender
        self._slots = tuple(slots)
        self.sent_bytes = 0

    @property
    def waited_s(self) -> float:
        """Time spent waiting for what was unsent, in seconds."""
        return self.sender.waited_s

    def send(
        self,
        kind: ParcelKind,
        step: int,
        tensors: Sequence[Tensor | None] = (),
        *,
        busy_us: int = 0,
        window: int = 0,
        checksum: int = 0,
    ) -> None:
        """Send a parcel; returns at once. What is given must not change any more.

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
        body = _pack([self._slots[k].encode(t) for k, t in present if not self._slots[k].shape_only])
        size = 0 if body is None else body.numel()
        header = [size, kind, step, rows, mask, busy_us, window, checksum, *shapes]
        self.sender.send(header, body, step)
        self.sent_bytes += 8 * len(header) + size


class Incoming:
    """The receiving end of a link.

    Args:
        line: to the sender.
        slots: agreed upon.
        device: of the stage.
        name: of the link, for errors.

    Attributes:
        receiver: of this direction.
        name: of the link.
    """

    def __init__(self, line: Line, slots: Sequence[Slot], device: torch.device, name: str) -> None:
        self._slots = tuple(slots)
        self._device = device
        self.name = name
        length = _PREFIX + sum(slot.ndim for slot in self._slots)
        self.receiver = line.receiver(length, self._check, name)

    def get(self, timeout_s: float | None) -> Parcel | None:
        """Take the oldest parcel; None if there is none within the timeout. None for no waiting at all.

        Raises:
            StageError: if one came that nobody agreed upon.
            Exception: what has broken the connection.
        """
        found = self.receiver.get(timeout_s)
        return None if found is None else self._read(found)

    def _check(self, header: Sequence[int]) -> bool:
        """Refuse a header that nobody agreed upon; return whether another one will follow. In the transport's thread."""
        size, kind, step, rows, mask, busy_us, window, _ = header[:_PREFIX]
        known = kind in set(ParcelKind) and 0 <= rows <= _MOST_ROWS and 0 <= mask < 1 << len(self._slots)
        # Room is made for a window's parcels, so one that is out of all measure would take all memory.
        known = known and step >= 0 and busy_us >= 0 and 0 <= window <= _MOST_WINDOW
        shapes = self._shapes(header) if known else {}
        fits = all(self._slots[k].fits(shape) for k, shape in shapes.items())
        if not known or not fits or size != sum(self._sizes(shapes)) or size > _MOST_BYTES:
            raise StageError(
                f"{self.name}: a header reads kind {kind}, {rows} rows, slots {mask:b}, {size} bytes, which nobody agreed "
                "upon; do all processes run the same version?"
            )
        if window:
            self.receiver.make_room(window + 1)
        return kind != ParcelKind.END

    def _shapes(self, header: Sequence[int]) -> dict[int, Sequence[int]]:
        """Return the shapes of the slots that are there."""
        mask, shapes, start = header[4], dict[int, Sequence[int]](), _PREFIX
        for k, slot in enumerate(self._slots):
            if mask >> k & 1:
                shapes[k] = header[start : start + slot.ndim]
            start += slot.ndim
        return shapes

    def _sizes(self, shapes: dict[int, Sequence[int]]) -> list[int]:
        """Return the bytes of the slots that are there, padded."""
        return [_padded(self._slots[k].num_bytes(shape)) for k, shape in shapes.items()]

    def _read(self, found: RawParcel) -> Parcel:
        shapes = self._shapes(found.header)
        starts = itertools.accumulate(self._sizes(shapes), initial=0)
        body = torch.empty(0, dtype=torch.uint8) if found.body is None else found.body
        tensors: list[Tensor | None] = [None] * len(self._slots)
        for (k, shape), start in zip(shapes.items(), starts, strict=False):
            data = body[start : start + self._slots[k].num_bytes(shape)]
            tensors[k] = self._slots[k].decode(data, shape, self._device)
        _, kind, step, _, _, busy_us, window, checksum = found.header[:_PREFIX]
        return Parcel(ParcelKind(kind), step, tuple(tensors), busy_us, window, checksum)


def _padded(size: int) -> int:
    return -(-size // ALIGNED) * ALIGNED


def _pack(parts: Sequence[Tensor]) -> Tensor | None:
    """Return bytes behind one another, each padded; None if there are none."""
    padded: list[Tensor] = []
    for data in parts:
        rest = _padded(data.numel()) - data.numel()
        padded += [data, data.new_zeros(rest)] if rest else [data]
    if not any(data.numel() for data in padded):
        return None
    return padded[0] if len(padded) == 1 else torch.cat(padded)
