"""How many batches a stage may be ahead of the answers: as few as keep it busy."""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Mapping
from typing import Any

__all__ = ["MOST", "Window"]

#: Credit that learns from messages this late is worth little; whoever wants more says so.
MOST = 64

#: Steps over the round trip, so that no stage waits for another's jitter.
_SLACK = 2

_REMEMBERED = 16


class Window:
    """Steps that a message may be late at the end of one stage.

    A stage that is ``w`` steps ahead of the answers needs none for ``w`` steps. With ``w`` over round trip by
    step time it never waits for the link; every step more lets it run ahead of a slower stage above, and what its
    rule learns from only gets older. So, unless it is given, ``w = ⌈round trip / step⌉ + 2`` follows both.

    Args:
        size: steps; None to follow the link.
        round_trip_s: of the link, in seconds.
    """

    def __init__(self, size: int | None, round_trip_s: float = 0.0) -> None:
        self._fixed = size
        self._round_trip_s = round_trip_s
        self._own: deque[float] = deque(maxlen=_REMEMBERED)
        self._above_s = 0.0

    @property
    def busy_s(self) -> float:
        """How long a step takes without waiting, in seconds: the median of the last ones; 0 before the first."""
        return statistics.median(self._own) if self._own else 0.0

    def record_step(self, busy_s: float) -> None:
        """Note how long a step has taken, without waiting."""
        self._own.append(busy_s)

    def record_above(self, busy_us: int) -> None:
        """Note how long the stage above says that its step takes, in microseconds."""
        self._above_s = busy_us * 1e-6

    @property
    def size(self) -> int:
        """Steps that the stage may be ahead now."""
        if self._fixed is not None:
            return self._fixed
        slower = max(self.busy_s, self._above_s)
        if not slower:
            return _SLACK  # nothing is known yet
        return min(math.ceil(self._round_trip_s / slower) + _SLACK, MOST)

    def state_dict(self) -> dict[str, Any]:
        """Return how long steps have taken so far; size and round trip belong to the run, not to its state."""
        return {"own_s": list(self._own), "above_s": self._above_s}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state."""
        self._own = deque(state["own_s"], maxlen=_REMEMBERED)
        self._above_s = state["above_s"]
