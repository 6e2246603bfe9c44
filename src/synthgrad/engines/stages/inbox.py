"""The inbox of a link: waits for the next parcel, in order, and notices when nothing will ever come."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ...core import StageError
from .coordinator import Coordinator
from .wire import Incoming, Parcel, ParcelKind

__all__ = ["Inbox"]

#: How often a waiting stage checks whether another has stopped, in seconds. A power of two, so that virtual times
#: stay exact.
_POLL_S = 1 / 8


class Inbox:
    """Receives parcels from one neighbour.

    ::

        state to be saved here                 neighbour's
              │                                     │
        … parcel 7, parcel 8, MARK ──── on the wire ───► `drain` keeps 7 and 8
                                                         `next`, `poll` return 7, 8, then what follows the mark

    Args:
        incoming: the receiving end of the link.
        peer: the rank of the neighbour.
        coordinator: the coordinator of all ranks.
        timeout_s: how long to wait for a parcel, in seconds.

    Attributes:
        waited_s: the time spent waiting so far, in seconds.
    """

    def __init__(self, incoming: Incoming, peer: int, coordinator: Coordinator, timeout_s: float) -> None:
        self._incoming = incoming
        self._peer = peer
        self._peers = coordinator.peers
        self._alarm = coordinator.alarm
        self._clock = coordinator.transport.clock
        self._timeout_s = timeout_s
        # Parcels that `drain` has received; they are older than everything still on the wire.
        self._kept: deque[Parcel] = deque()
        self.waited_s = 0.0

    def poll(self, doing: str) -> Parcel | None:
        """Return the next parcel if it is here, otherwise None.

        Args:
            doing: the progress of this stage, for errors, as in "has sent 9".
        """
        parcel = self._kept.popleft() if self._kept else self._get(None)
        return None if parcel is None else self._refuse_end(parcel, doing)

    def next(self, doing: str) -> Parcel:
        """Return the next parcel, which must not be the end of the link. Blocks.

        Args:
            doing: the progress of this stage, for errors.

        Raises:
            StageError: if another process has stopped, the link is broken or ended, or nothing comes in time.
        """
        return self._refuse_end(self._kept.popleft() if self._kept else self._wait(), doing)

    def drain(self) -> None:
        """Receive parcels up to the neighbour's mark, and keep them for `poll` and `next`. Blocks.

        Raises:
            StageError: as `next`.
        """
        doing = "is about to save its state"
        while (parcel := self._refuse_end(self._wait(), doing)).kind is not ParcelKind.MARK:
            self._kept.append(parcel)

    def wait_for_end(self, num_batches: int) -> None:
        """Drop what still comes until the neighbour has ended too. Blocks.

        Args:
            num_batches: the number of batches that this stage has processed.

        Raises:
            StageError: if the neighbour has processed another number of batches.
        """
        while (parcel := self._wait()).kind is not ParcelKind.END:
            if parcel.kind is ParcelKind.BATCH and parcel.step >= num_batches:
                raise self._unequal(
                    self._alarm.who, num_batches, f"{self._alarm.name(self._peer)} has sent {parcel.step + 1}"
                )
        if parcel.step != num_batches:
            first, last = sorted(
                [(parcel.step, self._alarm.name(self._peer)), (num_batches, self._alarm.who)]
            )
            raise self._unequal(first[1], first[0], f"{last[1]} after {last[0]}")

    def unexpected_error(self, parcel: Parcel, wanted: str) -> StageError:
        """Return the error for a parcel that is not the expected one."""
        return StageError(
            f"{self._incoming.name}: got {parcel.kind.name.lower()} {parcel.step}, expected {wanted}; all processes must "
            "call step, predict and close in the same order"
        )

    def state_dict(self) -> list[dict[str, Any]]:
        """Return the parcels that `drain` kept and that were not used yet, in order, with copies of their
        tensors.
        """
        return [
            {
                "kind": int(parcel.kind),
                "step": parcel.step,
                "tensors": _map(_copy, parcel.tensors),
                "busy_us": parcel.busy_us,
                "window": parcel.window,
                "checksum": parcel.checksum,
            }
            for parcel in self._kept
        ]

    def load_state_dict(self, state: Sequence[Mapping[str, Any]], device: torch.device) -> None:
        """Replace the kept parcels by those of a state.

        Args:
            state: what `state_dict` returned; its tensors are copied.
            device: the device of this stage.
        """
        self._kept.clear()
        for saved in state:
            tensors = tuple(_map(lambda t: _copy(t.to(device)), saved["tensors"]))
            numbers = (saved["busy_us"], saved["window"], saved["checksum"])
            self._kept.append(Parcel(ParcelKind(saved["kind"]), saved["step"], tensors, *numbers))

    def _wait(self) -> Parcel:
        start = self._clock.now()
        self._peers.announce_wait(self._peer)
        try:
            while True:
                parcel = self._get(_POLL_S)
                waited = self._clock.now() - start
                if parcel is not None:
                    self.waited_s += waited
                    return parcel
                self._alarm.check()
                if waited > self._timeout_s:
                    raise self._alarm.late_error(self._peer, self._timeout_s)
        finally:
            self._peers.announce_wait(None)

    def _refuse_end(self, parcel: Parcel, doing: str) -> Parcel:
        if parcel.kind is ParcelKind.END:
            raise self._unequal(self._alarm.name(self._peer), parcel.step, f"{self._alarm.who} {doing}")
        return parcel

    def _unequal(self, who: str, num_batches: int, other: str) -> StageError:
        self._alarm.check()
        return self._alarm.blame(
            f"{who} ended after {num_batches} batches, and {other}: give all ranks the same number of batches, and call "
            "step, predict and close in the same order everywhere"
        )

    def _get(self, timeout_s: float | None) -> Parcel | None:
        try:
            return self._incoming.get(timeout_s)
        except StageError:
            raise
        except Exception as error:
            raise self._alarm.broken_error(self._incoming.name, error, self._timeout_s) from None


def _map(change: Callable[[Tensor], Tensor], tensors: Any) -> list[Tensor | None]:
    return [None if t is None else change(t) for t in tensors]


def _copy(t: Tensor) -> Tensor:
    """Return a copy of a tensor.

    A tensor without values is a single number that is expanded; it is returned as it is.
    """
    # Detached, since a state holds values and no graphs.
    return t.detach() if not any(t.stride()) else t.detach().clone()
