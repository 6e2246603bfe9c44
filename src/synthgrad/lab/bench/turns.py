"""Taking turns: what is compared is timed in one run, a little of each in every round."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from ..training.machine import synchronize
from .base import median_and_spread

__all__ = ["WARM_UP_STEPS", "Turn", "ratios", "reason_of", "take_turns", "warmed_up"]

WARM_UP_STEPS, _WARM_UP_S = 20, 2.0

Kind = TypeVar("Kind", bound=Hashable)


@dataclass(slots=True)
class Turn:
    """One line's part of the rounds.

    Attributes:
        step: what is timed.
        per_round: how often it runs in a round.
        times_ms: of one step, mean over each round.
    """

    step: Callable[[], object]
    per_round: int
    times_ms: list[float] = field(default_factory=list[float])


def warmed_up(step: Callable[[], object], seconds: float, device: str) -> Turn:
    """Run some steps, and return a turn of about so many seconds in a round."""
    begin = start = time.perf_counter()
    for k in range(WARM_UP_STEPS):
        start = time.perf_counter()
        step()
        synchronize(device)
        if k >= 3 and start - begin > _WARM_UP_S:
            break
    once = time.perf_counter() - start
    return Turn(step, max(1, round(seconds / once)))


def take_turns(turns: dict[Kind, Turn], rounds: int, device: str) -> dict[Kind, str]:
    """Let all take turns; drop those that fail or diverge on the way, and return why."""
    failed: dict[Kind, str] = {}
    for _ in range(rounds):
        for kind, turn in list(turns.items()):
            try:
                synchronize(device)
                start = time.perf_counter()
                for _ in range(turn.per_round):
                    turn.step()
                synchronize(device)
                turn.times_ms.append((time.perf_counter() - start) / turn.per_round * 1e3)
            except Exception as error:
                failed[kind] = reason_of(error)
                del turns[kind]
    return failed


def reason_of(error: Exception) -> str:
    """Return an error as one line for a record."""
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


def ratios(own: Sequence[float], reference: Sequence[float], name: str = "backprop") -> dict[str, Any]:
    """Return the times of a step, and their ratio to a reference, taken in each round."""
    median, p10, p90 = median_and_spread(own)
    ratio, low, high = median_and_spread([a / b for a, b in zip(own, reference, strict=True)])
    return {
        "step_ms_median": median,
        "step_ms_p10": p10,
        "step_ms_p90": p90,
        f"ratio_to_{name}": ratio,
        f"ratio_to_{name}_p10": low,
        f"ratio_to_{name}_p90": high,
    }
