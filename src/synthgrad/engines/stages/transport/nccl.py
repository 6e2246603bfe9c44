"""Over NCCL: tensors stay on the accelerator, and are received one by one on a stream of the thread that receives.

NCCL has no tags, so no receive of a body can be posted before its header has told its size. A receive does not keep its
sender from computing, so nothing is lost.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor

from .base import Check
from .process_group import GroupLine, PostingSender, ProcessGroupTransport, ThreadReceiver

__all__ = ["NcclTransport"]


def _no_tag(size: int) -> int:
    return 0


class _NcclReceiver(ThreadReceiver):
    """Receives a header, reads it, and receives its body."""

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
        # Reading the numbers waits for the stream, so the buffer is free again.
        return self._receive(torch.empty(self._length, dtype=torch.int64, device=self._device)).tolist()

    def _body(self, size: int) -> Tensor:
        return self._receive(torch.empty(size, dtype=torch.uint8, device=self._device))

    def _receive(self, tensor: Tensor) -> Tensor:
        work = dist.irecv(tensor, self._peer, group=self._group)
        assert work is not None
        work.wait()  # of the thread's stream, not of the thread
        return tensor


class _NcclLine(GroupLine):
    def sender(self) -> PostingSender:
        return PostingSender(self._out, self._peer, self._device, _no_tag)

    def receiver(self, length: int, check: Check, name: str) -> _NcclReceiver:
        return _NcclReceiver(self._back, self._peer, self._device, length, check, name)


class NcclTransport(ProcessGroupTransport):
    """Processes with an accelerator each, which talk over NCCL."""

    def _line(
        self, out: dist.ProcessGroup, back: dist.ProcessGroup, peer: int, device: torch.device
    ) -> GroupLine:
        return _NcclLine(out, back, peer, device)
