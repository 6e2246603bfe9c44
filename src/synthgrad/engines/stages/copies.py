"""Copies of a stage's state that a neighbour keeps in memory, for a process that takes the stage's place.

::

    stage k   ── batch t, a part of its state ──►  stage k + 1   keeps the last whole copy
       ╳  dies
    stage k   ◄────── the copy, all of it ───────  stage k + 1   as soon as there is a line to the one that has come

Parts are small beside the activations, so that they take a small share of the link. A stage is copied to the one above, the
last one to the one below. Where no copy is left, the new process may ask its neighbours for their own weights.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ...core import StageError
from .wire import Outgoing, Parcel, ParcelKind, ParcelSlot

__all__ = ["COPY_SLOT", "KeptCopy", "SentCopy", "loaded_state", "saved_state", "send_whole", "take_average"]

#: The slot of a part: bytes, as many as there are.
COPY_SLOT = ParcelSlot((), torch.uint8)

#: The size of a part where somebody waits for the whole, and the least one, in bytes.
_PART_BYTES, _LEAST_BYTES = 1 << 18, 1 << 10

#: The largest state that is kept, in bytes.
_MOST_BYTES = 1 << 35


def saved_state(state: Mapping[str, Any]) -> Tensor:
    """Return a state of tensors, numbers and containers as bytes, ``(n,)`` uint8."""
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    return torch.frombuffer(buffer.getbuffer(), dtype=torch.uint8).clone()


def loaded_state(data: Tensor, device: torch.device) -> dict[str, Any]:
    """Return the state that `saved_state` was given, on a device of this machine; no code in it is run."""
    found: dict[str, Any] = torch.load(
        io.BytesIO(data.numpy().tobytes()), map_location=device, weights_only=True
    )
    return found


@torch.no_grad()
def take_average(own: Mapping[str, Tensor], near: Sequence[KeptCopy]) -> int | None:
    """Set weights to the average of those of neighbours that are alike; return the least number of their steps.

    Alike are weights of the same names, but for the numbers in them, with the same shapes and dtypes, in the same order. Counts,
    and what else is not floating-point, are those of the first. None if no neighbour is alike.
    """
    fitting: list[tuple[int, list[Tensor]]] = []
    for copy in near:
        assert copy.data is not None, "they have come"
        assert copy.step is not None, "they have come"
        weights = loaded_state(copy.data, torch.device("cpu"))
        if _form(weights) == _form(own):
            fitting.append((copy.step, [*weights.values()]))
    if not fitting:
        return None
    for k, t in enumerate(own.values()):
        theirs = [weights[k].to(t) for _, weights in fitting]
        t.copy_(torch.stack(theirs).mean(0) if t.is_floating_point() else theirs[0])
    return min(step for step, _ in fitting)


def _form(weights: Mapping[str, Tensor]) -> list[tuple[str, torch.Size, torch.dtype]]:
    return [(re.sub(r"\d+", "#", name), t.shape, t.dtype) for name, t in weights.items()]


class SentCopy:
    """The state of this stage, on its way to a neighbour.

    Args:
        share: of the bytes of an activation, or of a message, that go along with it.
    """

    def __init__(self, share: float) -> None:
        self._share = share
        self._data: Tensor | None = None
        self._step = self._sent = 0

    @property
    def is_done(self) -> bool:
        """Whether the last state is sent, and another one can be taken."""
        return self._share > 0 and self._data is None

    def take(self, step: int, data: Tensor) -> None:
        """Begin to send a state, as it was after so many steps."""
        self._data, self._step, self._sent = data, step, 0

    def forget(self) -> None:
        """Give up what is on its way: the neighbour has lost what it had of it."""
        self._data = None

    def send_part(self, outgoing: Outgoing, num_bytes: int) -> None:
        """Send as much as goes along with so many bytes."""
        if self._data is None:
            return
        size = max(_LEAST_BYTES, math.ceil(self._share * num_bytes))
        _send(outgoing, ParcelKind.STATE, self._step, self._data, self._sent, size)
        self._sent += size
        if self._sent >= len(self._data):
            self._data = None


class KeptCopy:
    """A state that comes in parts, as far as it has come: of a neighbour, or this stage's own, given back.

    Attributes:
        step: the number of steps after which it was as it is; None as long as there is none.
        data: the state as bytes, ``(n,)`` uint8; None as long as there is none.
        nothing_came: whether the neighbour has said that it has no copy.
    """

    def __init__(self) -> None:
        self.step: int | None = None
        self.data: Tensor | None = None
        self.nothing_came = False
        self._coming: Tensor | None = None
        self._next = 0

    @property
    def has_ended(self) -> bool:
        """Whether it is here, or will not come."""
        return self.data is not None or self.nothing_came

    def add(self, parcel: Parcel) -> None:
        """Take a part that has come.

        Raises:
            StageError: if it is too large to be one.
        """
        part, offset, total = parcel.tensors[-1] if parcel.tensors else None, parcel.busy_us, parcel.checksum
        if part is None:
            self.nothing_came = True
            return
        if not 0 < total <= _MOST_BYTES or offset + len(part) > total:
            raise StageError(
                f"a part of a stage's state reads {len(part)} bytes at {offset} of {total}; do all run the same version?"
            )
        if not offset:
            self._coming, self._next = torch.empty(total, dtype=torch.uint8), 0
        if self._coming is None or offset != self._next or total != len(self._coming):
            self._coming = None  # a part is missing: wait for the next copy
            return
        self._coming[offset : offset + len(part)] = part.cpu()
        self._next += len(part)
        if self._next == total:
            self.step, self.data, self._coming = parcel.step, self._coming, None

    def give(self, outgoing: Outgoing) -> None:
        """Send all of it to whoever has taken the neighbour's place; or that there is none."""
        if self.data is None or self.step is None:
            outgoing.send(ParcelKind.RETURNED, 0)
        else:
            send_whole(outgoing, ParcelKind.RETURNED, self.step, self.data)


def send_whole(outgoing: Outgoing, kind: ParcelKind, step: int, data: Tensor) -> None:
    """Send all parts of a state or of weights, as they were after so many steps."""
    for offset in range(0, len(data), _PART_BYTES):
        _send(outgoing, kind, step, data, offset, _PART_BYTES)


def _send(outgoing: Outgoing, kind: ParcelKind, step: int, data: Tensor, offset: int, size: int) -> None:
    part = data[offset : offset + size]
    outgoing.send_last(kind, step, part, busy_us=offset, checksum=len(data))
