"""The window: how many batches a stage may be ahead of the answers.

It is as small as possible without making it wait.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Mapping
from typing import Any

__all__ = ["MOST", "Window"]

#: The largest window that is chosen automatically: a rule that learns from later messages gives poor credit.
MOST = 64

#: Steps in addition to the round trip, so that the jitter of one stage does not make another wait.
_SLACK = 2

#: The number of step times of which the median is taken.
_REMEMBERED = 16


class Window:
    """The number of steps that a message may be late at the end of one stage.

    A stage that is ``w`` steps ahead of the answers needs none for ``w`` steps. If ``w`` is at least the
    round trip over the step time, it never waits for the link. Every further step lets it run further ahead
    of a slower stage above, and makes the messages that its rule learns from older. So, unless it is given,
    ``w = ⌈round trip / step⌉ + 2`` follows both.

    Args:
        size: the number of steps; None to adapt it to the link.
        round_trip_s: the round trip of the link, in seconds.

    Attributes:
        round_trip_s: the same; it changes when the link is another one.
    """

    def __init__(self, size: int | None, round_trip_s: float = 0.0) -> None:
        self._fixed = size
        self.round_trip_s = round_trip_s
        self._own: deque[float] = deque(maxlen=_REMEMBERED)
        self._above_s = 0.0

    @property
    def busy_s(self) -> float:
        """The time of a step without waiting, in seconds; 0 before the first step.

        It is the median of the last steps.
        """
        return statistics.median(self._own) if self._own else 0.0

    def record_step(self, busy_s: float) -> None:
        """Record the time of a step without waiting."""
        self._own.append(busy_s)

    def record_above(self, busy_us: int) -> None:
        """Record the step time of the stage above, in microseconds."""
        self._above_s = busy_us * 1e-6

    @property
    def size(self) -> int:
        """The number of steps that the stage may be ahead now."""
        if self._fixed is not None:
            return self._fixed
        slower = max(self.busy_s, self._above_s)
        if not slower:
            return _SLACK  # nothing is known yet
        return min(math.ceil(self.round_trip_s / slower) + _SLACK, MOST)

    def state_dict(self) -> dict[str, Any]:
        """Return the recorded step times. Size and round trip belong to the run, and not to its state."""
        return {"own_s": list(self._own), "above_s": self._above_s}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load the state that `state_dict` returned."""
        self._own = deque(state["own_s"], maxlen=_REMEMBERED)
        self._above_s = state["above_s"]
