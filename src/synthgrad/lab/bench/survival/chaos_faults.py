"""The faults of a run of ``bench chaos``: what happens to which stage, and when, drawn by a seed."""

from __future__ import annotations

import random
from dataclasses import dataclass

__all__ = ["KINDS", "Fault", "drawn_faults"]

KINDS = ("killed", "frozen", "cut")
#: Seconds from the beginning of one fault to that of the next; how long a stage is frozen, or a link cut; and how long
#: before the first and after the last nothing happens.
_APART_S, _LASTS_S, _CALM_S = (20.0, 30.0), (5.0, 20.0), 10.0


@dataclass(frozen=True, slots=True)
class Fault:
    """What happens.

    Attributes:
        kind: one of `KINDS`.
        stage: the stage that it happens to; of a cut link the one below.
        begin_s: when, in seconds from the beginning of the run.
        end_s: when it is over; of a killed stage the same as the beginning: another process is started at once.
        next_s: when the next fault begins, or the run ends.
    """

    kind: str
    stage: int
    begin_s: float
    end_s: float
    next_s: float

    def concerns(self, stage: int) -> bool:
        """Return whether it happens to a stage itself; a cut link leaves both of its stages alive."""
        return self.kind != "cut" and stage == self.stage


def drawn_faults(seed: int, stages: int, seconds: float) -> list[Fault]:
    """Return the faults of a run that lasts so many seconds.

    >>> [f.kind for f in drawn_faults(0, 4, 120.0)] == [f.kind for f in drawn_faults(0, 4, 120.0)]
    True
    """
    draws = random.Random(f"chaos {seed}")
    found: list[tuple[str, int, float, float]] = []
    begin_s = _CALM_S
    while begin_s < seconds - _CALM_S:
        kind = draws.choice(KINDS)
        stage = draws.randrange(stages - 1 if kind == "cut" else stages)
        lasts_s = 0.0 if kind == "killed" else draws.uniform(*_LASTS_S)
        apart_s = draws.uniform(*_APART_S)
        found.append((kind, stage, begin_s, begin_s + min(lasts_s, apart_s - 1.0)))
        begin_s += apart_s
    ends = [*(begin for _, _, begin, _ in found[1:]), seconds]
    return [Fault(*fault, min(after, seconds)) for fault, after in zip(found, ends, strict=True)]
