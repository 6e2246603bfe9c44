"""Parcels: tensors of agreed shapes and dtypes, each parcel behind a small header.

::

    header   bytes of the body │ kind, step, rows, which slots, busy time, window, checksum │ shapes of the slots
    body     the tensors of these slots as bytes, by their codecs, one behind another, each padded

All headers of a link have the same length in int64 numbers. Nothing else is ever sent: no pickles, and no
dtypes or numbers of dimensions that were not agreed upon. The transport decides how headers and bodies are
sent.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Any

import torch
from torch import Tensor

from ...core import CutError, Decoupled, Site, StageError
from ..codecs import Codec, KeepingCodec
from ..codecs.casting import Cast
from .transport import ALIGNED, Line, RawParcel, Sender

__all__ = ["FORMAT", "Incoming", "Outgoing", "Parcel", "ParcelKind", "ParcelSlot", "output_slot", "slot_for"]

#: The version of the wire format; it changes with headers, bodies, and the meaning of the kinds of parcels.
FORMAT = 3

_PREFIX = 8
_MOST_ROWS = 1 << 24
_MOST_BYTES = 1 << 35
_MOST_WINDOW = 1 << 16


class ParcelKind(IntEnum):
    """The kinds of parcels."""

    BATCH = 1  # upwards: an activation to learn from
    MESSAGE = 2  # downwards: the message for a batch, or that there is none
    PREDICT = 3  # upwards: an activation to run forward only
    END = 4  # both ways: nothing will follow; its step is the number of batches that the sender has processed
    MARK = 5  # both ways: what was sent before it belongs to the state that is being saved
    STATE = 6  # both ways: a part of the sender's state, for a process that takes its place
    RETURNED = 7  # both ways: a part of the receiver's state, given back; without tensors, that there is none
    ASKED = 8  # both ways: the receiver is to send its weights
    WEIGHTS = 9  # both ways: a part of the sender's weights, for a neighbour that has asked


@dataclass(frozen=True, slots=True)
class ParcelSlot:
    """A place for a tensor in a parcel.

    Attributes:
        shape: the shape without the batch dimension; None for a size that differs from batch to batch.
        dtype: the dtype that the receiver gets.
        codec: how the tensor is sent; None to send it as it is, in ``dtype``.
        shape_only: whether only the shape is sent; the receiver gets a tensor without values.
    """

    shape: tuple[int | None, ...]
    dtype: torch.dtype
    codec: Codec | None = None
    shape_only: bool = False

    @property
    def ndim(self) -> int:
        """The number of dimensions, with the batch dimension."""
        return len(self.shape) + 1

    def fits(self, shape: Sequence[int]) -> bool:
        """Return whether a shape was agreed upon."""
        return len(shape) == self.ndim and all(
            0 <= n <= _MOST_ROWS and e in (None, n) for n, e in zip(shape, (None, *self.shape), strict=True)
        )

    def num_bytes(self, shape: Sequence[int]) -> int:
        """Return the number of bytes that are sent for a tensor of a shape."""
        return 0 if self.shape_only else self._codec.num_bytes(shape)

    def encode(self, tensor: Tensor) -> Tensor:
        """Return the bytes that are sent for a tensor, ``(n,)`` uint8.

        Raises:
            StageError: if the codec returns another number of bytes than it says.
        """
        # Only values are sent; a codec has no part in the graph.
        data, expected = self._codec.encode(tensor.detach()), self.num_bytes(tensor.shape)
        if data.dtype != torch.uint8 or data.shape != (expected,):
            raise StageError(
                f"codec '{self._codec.name}' made a {data.dtype} of shape {tuple(data.shape)} of a tensor of shape "
                f"{tuple(tensor.shape)}, expected {expected} bytes (uint8): encode and num_bytes must agree"
            )
        return data

    def decode(self, data: Tensor, shape: Sequence[int], device: torch.device) -> Tensor:
        """Return the tensor for some bytes, ``(rows, ...)`` on a device."""
        if self.shape_only:
            # A single number that is expanded: a tensor of the right shape that needs no memory.
            return torch.zeros((), dtype=self.dtype, device=device).expand(tuple(shape))
        if not data.numel():
            return torch.empty(tuple(shape), dtype=self.dtype, device=device)
        return self._codec.decode(data, shape, device, self.dtype)

    def for_direction(self) -> ParcelSlot:
        """Return the slot for a sender: a codec that keeps something from tensor to tensor is its own."""
        return (
            replace(self, codec=self.codec.for_direction()) if isinstance(self.codec, KeepingCodec) else self
        )

    @property
    def _codec(self) -> Codec:
        return self.codec or Cast(self.dtype)

    def __str__(self) -> str:
        sizes = ["rows", *("any" if n is None else str(n) for n in self.shape)]
        return f"({', '.join(sizes)}) {self.dtype}"


def slot_for(site: Site) -> ParcelSlot:
    """Return the slot for the message at a cut.

    The number of features is fixed, other sizes may differ from batch to batch.
    """
    if len(site.shape) < 2:
        return ParcelSlot((), site.dtype)
    return ParcelSlot(
        tuple(n if k == site.features_at else None for k, n in enumerate(site.shape) if k), site.dtype
    )


def output_slot(net: Decoupled) -> ParcelSlot | None:
    """Return the slot of the output error, which is sent down with the messages; None if no rule needs it.

    Raises:
        CutError: if the network returns more than one tensor that could have an error.
    """
    if not net.needs_output_error:
        return None
    if len(net.graph.outputs) != 1:
        raise CutError(
            f"a rule needs the network's output error, and the network returns {len(net.graph.outputs)} floating tensors "
            "with a gradient; let it return one, and compute the loss outside of it"
        )
    ((shape, dtype),) = net.graph.outputs
    return ParcelSlot((None,) * (len(shape) - 1), dtype)


@dataclass(slots=True)
class Parcel:
    """A parcel that was received.

    Attributes:
        kind: the kind of the parcel.
        step: the step of the batch that it belongs to.
        tensors: the tensors by slot, ``(rows, ...)``; None for slots that were left empty.
        busy_us: the time of a step of the sender, without waiting, in microseconds; 0 if unknown.
        window: the number of parcels that the sender may have in flight; 0 if unknown.
        checksum: the checksum of the examples that the sender was given for this batch; 0 if unknown.
    """

    kind: ParcelKind
    step: int
    tensors: tuple[Tensor | None, ...] = ()
    busy_us: int = 0
    window: int = 0
    checksum: int = 0


class Outgoing:
    """The sending end of a link. It waits for the receiver only if too much is unsent.

    Args:
        sender: the sender of this direction.
        slots: the agreed slots.

    Attributes:
        sender: the sender of this direction.
        sent_bytes: the number of bytes of all parcels so far, headers included.
    """

    def __init__(self, sender: Sender, slots: Sequence[ParcelSlot]) -> None:
        self.sender = sender
        self._slots = tuple(slot.for_direction() for slot in slots)
        self.sent_bytes = 0

    def state_dict(self) -> dict[str, Any]:
        """Return what codecs keep from one tensor to the next, by slot."""
        return {
            str(k): slot.codec.state_dict()
            for k, slot in enumerate(self._slots)
            if isinstance(slot.codec, KeepingCodec)
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load what `state_dict` returned."""
        for k, slot in enumerate(self._slots):
            if isinstance(slot.codec, KeepingCodec) and str(k) in state:
                slot.codec.load_state_dict(state[str(k)])

    @property
    def waited_s(self) -> float:
        """The time spent waiting because too much was unsent, in seconds."""
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
        """Send a parcel; returns at once. The tensors must not be changed afterwards.

        Raises:
            StageError: if a tensor does not have the agreed shape.
        """
        full = [*tensors, *[None] * (len(self._slots) - len(tensors))]
        present = [(k, t) for k, t in enumerate(full) if t is not None]
        rows = present[0][1].shape[0] if present else 0
        shapes: list[int] = []
        for slot, t in zip(self._slots, full, strict=True):
            if t is not None and not slot.fits(t.shape):
                raise StageError(
                    f"a tensor of shape {tuple(t.shape)} was to be sent over the link, which was agreed to be {slot}; give batches "
                    "like the example"
                )
            shapes += [0] * slot.ndim if t is None else t.shape
        mask = sum(1 << k for k, _ in present)
        body = _pack([self._slots[k].encode(t) for k, t in present if not self._slots[k].shape_only])
        size = 0 if body is None else body.numel()
        header = [size, kind, step, rows, mask, busy_us, window, checksum, *shapes]
        self.sender.send(header, body, step)
        self.sent_bytes += 8 * len(header) + size

    def send_last(
        self, kind: ParcelKind, step: int, tensor: Tensor, *, busy_us: int = 0, checksum: int = 0
    ) -> None:
        """Send a parcel that has nothing but a tensor for the last slot; see `send`."""
        before = [None] * (len(self._slots) - 1)
        self.send(kind, step, [*before, tensor], busy_us=busy_us, checksum=checksum)


class Incoming:
    """The receiving end of a link.

    Args:
        line: the line to the sender.
        slots: the agreed slots.
        device: the device of the stage.
        name: the name of the link, for errors.

    Attributes:
        receiver: the receiver of this direction.
        name: the name of the link.
    """

    def __init__(self, line: Line, slots: Sequence[ParcelSlot], device: torch.device, name: str) -> None:
        self._slots = tuple(slots)
        self._device = device
        self.name = name
        length = _PREFIX + sum(slot.ndim for slot in self._slots)
        self.receiver = line.receiver(length, self._check, name)

    def get(self, timeout_s: float | None) -> Parcel | None:
        """Return the oldest parcel, or None if none arrives within the timeout.

        A timeout of None means not to wait.

        Raises:
            StageError: if a parcel has a header that was not agreed upon.
            Exception: the error that has broken the connection.
        """
        found = self.receiver.get(timeout_s)
        return None if found is None else self._read(found)

    def _check(self, header: Sequence[int]) -> bool:
        """Refuse a header that was not agreed upon; return whether another one will follow.

        Runs in the transport's thread.
        """
        size, kind, step, rows, mask, busy_us, window, _ = header[:_PREFIX]
        known = kind in set(ParcelKind) and 0 <= rows <= _MOST_ROWS and 0 <= mask < 1 << len(self._slots)
        # The receiver makes room for a window of parcels, so an absurdly large window would take all memory.
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
        """Return the shapes of the slots that are filled."""
        mask, shapes, start = header[4], dict[int, Sequence[int]](), _PREFIX
        for k, slot in enumerate(self._slots):
            if mask >> k & 1:
                shapes[k] = header[start : start + slot.ndim]
            start += slot.ndim
        return shapes

    def _sizes(self, shapes: dict[int, Sequence[int]]) -> list[int]:
        """Return the number of bytes of the slots that are filled, padded."""
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
    """Concatenate bytes, each part padded; None if there are none."""
    padded: list[Tensor] = []
    for data in parts:
        rest = _padded(data.numel()) - data.numel()
        padded += [data, data.new_zeros(rest)] if rest else [data]
    if not any(data.numel() for data in padded):
        return None
    return padded[0] if len(padded) == 1 else torch.cat(padded)
