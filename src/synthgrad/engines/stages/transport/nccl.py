"""The transport over NCCL: tensors stay on the accelerator.

A thread receives them one by one, on a stream of its own. NCCL has no tags, so the receive of a body cannot
be posted before its header has told its size. This costs nothing, since the sender does not wait for a
receive.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from ..layout import RankLayout
from .base import HeaderCheck, WaitLimit
from .ends import FOREVER, PostingSender, ThreadReceiver
from .process_group import GroupLine, GroupLines, ProcessGroupTransport, wait_for_work

__all__ = ["NcclTransport"]


def _no_tag(size: int) -> int:
    return 0


class _NcclReceiver(ThreadReceiver):
    """Receives a header, reads it, and receives its body."""

    def _forget(self) -> None:
        pass

    def make_room(self, num_parcels: int) -> None:
        pass  # nothing is posted ahead

    @contextmanager
    def _here(self) -> Generator[None]:
        with torch.cuda.device(self._device), torch.cuda.stream(torch.cuda.Stream(self._device)):
            yield

    def _event(self) -> torch.cuda.Event:
        ready = torch.cuda.Event()
        ready.record()
        return ready

    def _header(self) -> list[int]:
        # Reading the numbers waits for the stream, so the header has arrived completely.
        return self._receive(torch.empty(self._length, dtype=torch.int64, device=self._device)).tolist()

    def _body(self, size: int) -> Tensor:
        return self._receive(torch.empty(size, dtype=torch.uint8, device=self._device))

    def _receive(self, tensor: Tensor) -> Tensor:
        # This makes the thread's stream wait for the tensor, and not the thread itself.
        self._direction.receive(tensor, 0).wait()
        return tensor


@dataclass(frozen=True, slots=True)
class _NcclDirection:
    """A group of two ranks; see `Direction`."""

    group: dist.ProcessGroup
    peer: int

    def send(self, tensor: Tensor, tag: int) -> dist.Work:
        return _posted(dist.isend(tensor, self.peer, group=self.group))

    def receive(self, tensor: Tensor, tag: int) -> dist.Work:
        return _posted(dist.irecv(tensor, self.peer, group=self.group))

    def abort(self) -> None:
        with suppress(RuntimeError):
            self.group.abort()

    def close(self) -> None:
        if dist.is_initialized():
            with suppress(RuntimeError, ValueError):  # the program may have destroyed all groups
                dist.destroy_process_group(self.group)


def _posted(work: dist.Work | None) -> dist.Work:
    assert work is not None
    return work


class _NcclLine(GroupLine):
    def _make_sender(self) -> PostingSender:
        return PostingSender(self._out, self._device, _no_tag, self._timeout_s)

    def _make_receiver(self, length: int, check: HeaderCheck, name: str) -> _NcclReceiver:
        return _NcclReceiver(self._back, self._device, length, check, name)


class NcclTransport(ProcessGroupTransport):
    """The transport of processes with an accelerator each, which communicate over NCCL."""

    def _connect(
        self, lines: GroupLines, layout: RankLayout, device: torch.device, limit: WaitLimit, *, around: bool
    ) -> None:
        """Create the groups of all pairs, in one order, since all ranks must call `new_group`."""

        def line(low: int, high: int, replica: int) -> _NcclLine | None:
            """Return the line between two stages of a replica; None in all other processes."""
            lower, upper = (stage * layout.num_replicas + replica for stage in (low, high))
            lines.announce_wait(upper if self.rank == lower else lower)
            # NCCL aborts whatever takes longer than the timeout of its group, and a receive may wait as long as a
            # run lasts.
            groups = [dist.new_group([lower, upper], timeout=FOREVER) for _ in range(2)]  # pyright: ignore
            if self.rank not in (lower, upper):
                return None
            peer = upper if self.rank == lower else lower
            up, down = (
                _NcclDirection(group, peer) for group in groups if isinstance(group, dist.ProcessGroup)
            )
            ends = (up, down) if self.rank == lower else (down, up)
            return _NcclLine(*ends, device, limit.timeout_s)

        for stage in range(layout.num_stages - 1):
            for replica in range(layout.num_replicas):
                made = line(stage, stage + 1, replica)
                if made is not None and layout.stage == stage:
                    lines.above = made
                elif made is not None:
                    lines.below = made
        for replica in range(layout.num_replicas if around else 0):
            made = line(0, layout.num_stages - 1, replica)
            if made is not None:
                lines.around = made

    def _let_go(self) -> None:
        pass

    def sum(self, tensor: Tensor, check: Callable[[], None]) -> Tensor:
        """See `Transport.sum`."""
        wait_for_work(dist.all_reduce(tensor, async_op=True), check)
        return tensor

    def broadcast(self, tensor: Tensor, source: int, check: Callable[[], None] | None = None) -> None:
        """See `Transport.broadcast`."""
        wait_for_work(dist.broadcast(tensor, source, async_op=True), check)
