"""What a neighbour sends, whole and damaged: the parcels of stages, read as a stage reads them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ....core import StageError
from ....engines.stages.transport import RawParcel
from ....engines.stages.wire import Incoming, Outgoing, ParcelKind, ParcelSlot
from .damaged_inputs import Input

__all__ = ["PARCELS"]

_SLOTS = (ParcelSlot((8,), torch.float32), ParcelSlot((), torch.int64))
_STEP = 7
_INT = 8  # bytes of a number in a header


class _Sender:
    """Keeps what is sent."""

    waited_s = 0.0

    def __init__(self) -> None:
        self.sent = b""

    def send(self, header: Sequence[int], body: Tensor | None, number: int) -> None:
        self.sent = torch.tensor(header, dtype=torch.int64).numpy().tobytes()
        if body is not None:
            self.sent += body.numpy().tobytes()

    def make_room(self, num_parcels: int) -> None: ...
    def arrived(self, number: int) -> None: ...
    def flush(self) -> None: ...


class _Line:
    """Brings one parcel, in bytes, as a transport does: the header is looked at before its body is received."""

    def __init__(self, sent: bytes) -> None:
        self._sent = sent
        self.room = 0

    def receiver(self, length: int, check: Any, name: str) -> _Line:
        self._length, self._check = length, check
        return self

    def make_room(self, num_parcels: int) -> None:
        self.room = num_parcels

    def get(self, timeout_s: float | None) -> RawParcel:
        head = self._sent[: self._length * _INT]
        if len(head) < self._length * _INT:
            raise StageError("the link broke in the midst of a header")
        header: list[int] = torch.frombuffer(bytearray(head), dtype=torch.int64).tolist()
        self._check(header)
        body = self._sent[len(head) : len(head) + header[0]]
        if len(body) < header[0]:
            raise StageError("the link broke in the midst of a body")
        return RawParcel(header, torch.frombuffer(bytearray(body), dtype=torch.uint8) if body else None)


def _parcel_file(folder: Path) -> Path:
    sender = _Sender()
    h = torch.arange(32.0).view(4, 8)
    Outgoing(sender, _SLOTS).send(ParcelKind.BATCH, _STEP, (h, torch.arange(4)), window=5, checksum=123)
    path = folder / "parcel"
    path.write_bytes(sender.sent)
    return path


def _read_parcel(path: Path) -> Any:
    line: Any = _Line(path.read_bytes())
    parcel = Incoming(line, _SLOTS, torch.device("cpu"), "the link").get(None)
    assert parcel is not None
    if line.room > 1 << 20:
        raise AssertionError(f"room was made for {line.room} parcels")
    if (parcel.kind, parcel.step) != (ParcelKind.BATCH, _STEP):
        raise StageError(f"got {parcel.kind.name} {parcel.step}")  # as links do, which know what is next
    return [None if t is None else (t.shape, t.tolist()) for t in parcel.tensors], parcel.checksum


#: A body carries no sum of its own: between processes TCP does.
PARCELS = (Input("a neighbour's parcel", _parcel_file, _read_parcel),)
