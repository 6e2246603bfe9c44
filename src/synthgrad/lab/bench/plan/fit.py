"""The overheads that one-process lines do not say: from a named tenth of the lines, by descent along each of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from .lines import Line, Session
from .predict import Overheads, predict

__all__ = ["EVERY", "fit", "named"]

#: Every tenth line, from the first, is one from which overheads are found; it is left out of the errors.
EVERY = 10

_FACTORS = (0.25, 0.5, 0.7, 0.85, 0.95, 1.05, 1.15, 1.4, 2.0, 4.0)
_ROUNDS = 8
_ENOUGH = 1e-6


def named(sessions: Sequence[Session]) -> list[tuple[Line, Session]]:
    """Return every tenth line of all sessions, from the first."""
    return [(line, session) for session in sessions for line in session.lines][::EVERY]


def fit(lines: Sequence[tuple[Line, Session]], start: Overheads | None = None) -> Overheads:
    """Return the overheads with which the mean square error of some lines is least, in logarithms.

    Args:
        lines: measured ones, with their sessions.
        start: where to begin.
    """
    found = start or Overheads()
    if not lines:
        return found
    least = _error(lines, found)
    for _ in range(_ROUNDS):
        before = least
        for name, value in found.to_dict().items():
            for factor in _FACTORS:
                trial = replace(found, **{name: value * factor})
                if (error := _error(lines, trial)) < least - 1e-8:
                    least, found = error, trial
        if before - least < _ENOUGH:
            break
    return found


def _error(lines: Sequence[tuple[Line, Session]], overheads: Overheads) -> float:
    errors: list[float] = []
    for line, session in lines:
        assert line.measured_ms is not None
        predicted_ms = 1e3 * predict(line, session, overheads).step_s
        errors.append(math.log(predicted_ms / line.measured_ms[0]) ** 2)
    return sum(errors) / len(errors)
