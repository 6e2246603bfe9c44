"""One direction of a link: computes when each frame arrives at the other end."""

from __future__ import annotations

import math
from collections import deque
from random import Random

__all__ = ["Line"]


class Line:
    """A first-in, first-out queue of frames with the time at which each arrives.

    The last bit of a frame leaves at ``max(now, free_at) + size / rate`` and arrives ``delay_s`` later, and as much more as is
    drawn for it; never before the frame in front.

    Args:
        delay_s: delay from end to end.
        bytes_per_s: rate; None for no limit.
        limit_bytes: size of the queue of frames that have not left (without a rate: have not arrived). Frames that do
            not fit are dropped, but a frame that finds an empty queue always passes.
        jitter_s: what is added to the delay of a frame, at most and uniformly at random.
        seed: of what is added.
    """

    __slots__ = (
        "_bytes_per_s",
        "_delay_s",
        "_drawn",
        "_free_at",
        "_held",
        "_jitter_s",
        "_limit_bytes",
        "_under_way",
    )

    def __init__(
        self,
        delay_s: float,
        bytes_per_s: float | None,
        limit_bytes: int,
        jitter_s: float = 0.0,
        *,
        seed: int = 0,
    ) -> None:
        self._delay_s = delay_s
        self._jitter_s = jitter_s
        self._drawn = Random(seed)
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
        arrives = leaves + self._delay_s
        if self._jitter_s:
            arrives += self._drawn.uniform(0.0, self._jitter_s)
            arrives = max(arrives, self._under_way[-1][0]) if self._under_way else arrives
        self._under_way.append((arrives, size, frame))
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
