"""Stages that take longer than they need: they sleep, so that processes on one machine have unlike speeds."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping

from torch import nn

from ....core import ConfigError

__all__ = ["Slowdown", "check_slow", "parse_slow"]

#: Share of the newest step in the mean of what a step takes.
_NEWEST = 0.2


def parse_slow(text: str) -> dict[int, float]:
    """Return by stage how many times as long it shall take.

    >>> parse_slow("1:2.0,3:1.5")
    {1: 2.0, 3: 1.5}

    Raises:
        ConfigError: if a stage or a factor is out of range, or a stage is named twice.
    """
    found: dict[int, float] = {}
    for part in text.split(","):
        stage, colon, factor = (word.strip() for word in part.partition(":"))
        try:
            number, times = int(stage), float(factor)
        except ValueError:
            number, times = -1, 0.0
        if not colon or number < 0 or not 1 <= times < math.inf:
            raise ConfigError(
                f"--slow '{text}': '{part.strip()}' is no stage with a factor of at least 1; write it as in 1:2.0"
            )
        if number in found:
            raise ConfigError(f"--slow '{text}': stage {number} is given twice; give it once")
        found[number] = times
    return found


class Slowdown:
    """Lets a stage sleep in the forward pass of its module, in proportion to what its steps have taken without that.

    Args:
        module: of the stage.
        factor: how many times as long its steps shall take; 1 to leave them as they are.
    """

    def __init__(self, module: nn.Module, factor: float) -> None:
        self._factor = factor
        self._own_s = 0.0  # a step without sleep, on average
        self._slept_s = 0.0
        if factor > 1:
            module.register_forward_hook(self._sleep)

    def _sleep(self, module: nn.Module, args: object, output: object) -> None:
        if module.training:
            start = time.perf_counter()
            time.sleep((self._factor - 1) * self._own_s)
            self._slept_s += time.perf_counter() - start

    def record(self, busy_s: float) -> None:
        """Take notice of a step's computing time, the sleep included."""
        own_s, self._slept_s = max(0.0, busy_s - self._slept_s), 0.0
        self._own_s += (own_s - self._own_s) * (_NEWEST if self._own_s else 1.0)


def check_slow(slow: Mapping[int, float], num_stages: int) -> None:
    """Refuse stages that there are not.

    Raises:
        ConfigError: naming the stage.
    """
    for stage in slow:
        if stage >= num_stages:
            raise ConfigError(f"--slow names stage {stage}: expected 0 to {num_stages - 1}")
