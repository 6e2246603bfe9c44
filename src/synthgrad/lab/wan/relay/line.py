"""One direction between two workers: when each frame arrives at the other end."""

from __future__ import annotations

import math
from collections import deque

__all__ = ["Line"]


class Line:
    """Frames on their way, first in, first out.

    A frame's last bit leaves at ``max(now, free_at) + size / rate`` and arrives ``delay_s`` later.

    Args:
        delay_s: time from end to end.
        bytes_per_s: the rate; None for no limit.
        limit_bytes: how much may wait to leave (without a rate: be under way); what goes beyond is dropped. A frame
            that finds nothing waiting always passes.
    """

    __slots__ = ("_bytes_per_s", "_delay_s", "_free_at", "_held", "_limit_bytes", "_under_way")

    def __init__(self, delay_s: float, bytes_per_s: float | None, limit_bytes: int) -> None:
        self._delay_s = delay_s
        self._bytes_per_s = bytes_per_s
        self._limit_bytes = limit_bytes
        self._free_at = -math.inf
        self._held = 0
        self._under_way: deque[tuple[float, int, bytes]] = deque()

    def offer(self, frame: bytes, size: int, now: float) -> bool:
        """Take a frame of ``size`` bytes on the wire at time ``now``; return False if it was dropped."""
        rate = self._bytes_per_s
        if rate is None:
            waiting: float = self._held
            leaves = now
        else:
            start = max(now, self._free_at)
            waiting = (start - now) * rate
            leaves = start + size / rate
        if waiting and waiting + size > self._limit_bytes:
            return False
        self._free_at = leaves
        self._held += size
        self._under_way.append((leaves + self._delay_s, size, frame))
        return True

    def due(self) -> float:
        """Return when the next frame arrives; infinity if none is under way."""
        return self._under_way[0][0] if self._under_way else math.inf

    def pop(self) -> bytes:
        """Return the frame that arrives next.

        Raises:
            IndexError: if none is under way.
        """
        _, size, frame = self._under_way.popleft()
        self._held -= size
        return frame
