"""Over gloo: tensors go through the host's memory, and receives lie ready before anything is sent.

With gloo a posted receive tells that it is complete only when it is waited for, so a thread waits. And a sender keeps back
what nobody has posted a receive for, which costs a round trip; so receives lie ready for as many parcels as may be under
way. Bodies of a size have a tag of their own: a receive that was posted for a body of another size just waits for the next
of its own.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from .base import ALIGNED, Check
from .process_group import GroupLine, PostingSender, ProcessGroupTransport, ThreadReceiver

__all__ = ["GlooTransport"]

_CPU = torch.device("cpu")

#: Receives that lie ready: of headers, and of bodies before anything is known of the sender's window.
_HEADERS_AHEAD, _FIRST_AHEAD = 80, 4


def _tag(size: int) -> int:
    """Return the tag of a body of so many bytes: 0 is that of headers."""
    return 1 + size // ALIGNED


@dataclass(frozen=True, slots=True)
class _Posted:
    """A receive, and where it writes to."""

    work: dist.Work
    tensor: Tensor

    def wait(self) -> Tensor:
        self.work.wait()
        return self.tensor


class _GlooReceiver(ThreadReceiver):
    """Keeps receives posted: of headers, and of bodies of every size that has come so far."""

    def __init__(self, group: dist.ProcessGroup, peer: int, length: int, check: Check, name: str) -> None:
        super().__init__(group, peer, _CPU, length, check, name)
        self._headers: deque[_Posted] = deque()
        self._bodies: dict[int, deque[_Posted]] = {}  # by size
        self._ahead = _FIRST_AHEAD

    def make_room(self, num_parcels: int) -> None:
        self._ahead = max(self._ahead, num_parcels)

    def _header(self) -> list[int]:
        while len(self._headers) < _HEADERS_AHEAD:
            self._headers.append(self._post(torch.empty(self._length, dtype=torch.int64), 0))
        return self._headers.popleft().wait().tolist()

    def _body(self, size: int) -> Tensor:
        posted = self._bodies.setdefault(size, deque())
        while len(posted) < self._ahead + 1:
            posted.append(self._post_body(size))
        found = posted.popleft().wait()
        posted.append(self._post_body(size))
        return found

    def _post_body(self, size: int) -> _Posted:
        return self._post(torch.empty(size, dtype=torch.uint8), _tag(size))

    def _post(self, tensor: Tensor, tag: int) -> _Posted:
        work = dist.irecv(tensor, self._peer, group=self._group, tag=tag)
        assert work is not None
        return _Posted(work, tensor)


class _GlooLine(GroupLine):
    def sender(self) -> PostingSender:
        return PostingSender(self._out, self._peer, _CPU, _tag)

    def receiver(self, length: int, check: Check, name: str) -> _GlooReceiver:
        return _GlooReceiver(self._back, self._peer, length, check, name)


class GlooTransport(ProcessGroupTransport):
    """Processes that talk over gloo, whatever device they compute on."""

    def _line(
        self, out: dist.ProcessGroup, back: dist.ProcessGroup, peer: int, device: torch.device
    ) -> GroupLine:
        return _GlooLine(out, back, peer, _CPU)
