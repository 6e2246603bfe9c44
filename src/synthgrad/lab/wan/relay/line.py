"""One direction of a link: computes when each frame arrives at the other end."""

from __future__ import annotations

import math
from collections import deque

__all__ = ["Line"]


class Line:
    """A first-in, first-out queue of frames with the time at which each arrives.

    The last bit of a frame leaves at ``max(now, free_at) + size / rate`` and arrives ``delay_s`` later.

    Args:
        delay_s: delay from end to end.
        bytes_per_s: rate; None for no limit.
        limit_bytes: size of the queue of frames that have not left (without a rate: have not arrived). Frames that do
            not fit are dropped, but a frame that finds an empty queue always passes.
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
        """Accept or drop a frame of ``size`` bytes on the wire at time ``now``; return whether it was accepted."""
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
        """Return the time at which the next frame arrives; infinity if there is none."""
        return self._under_way[0][0] if self._under_way else math.inf

    def pop(self) -> bytes:
        """Remove and return the frame that arrives next.

        Raises:
            IndexError: if there is none.
        """
        _, size, frame = self._under_way.popleft()
        self._held -= size
        return frame
