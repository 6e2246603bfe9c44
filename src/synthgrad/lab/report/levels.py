"""How much data and time runs take to come as far as all methods come: the same mark for everyone."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from ..records import Record
from .curves import points_of
from .fields import number
from .sheet import DASH
from .unrolls import Kind, UnrollSweep

__all__ = ["common_level", "reach_cell"]


def common_level(sweep: UnrollSweep) -> float | None:
    """Return the worst of what the methods reach, each at its best ``T`` and with every seed that ended well.

    Args:
        sweep: the runs.

    Returns:
        The level, in the unit of the curves; None where nothing was reached.
    """
    reached: list[float] = []
    for row in sweep.rows:
        ends = [_end(sweep.runs(row, unroll), sweep.kind) for unroll in sweep.unrolls]
        if known := [end for end in ends if end is not None]:
            reached.append(sweep.kind.best(known))
    level = sweep.kind.worst(reached) if reached else None
    return level or None  # no sequence at all is no mark to reach


def _end(records: Sequence[Record], kind: Kind) -> float | None:
    """Return the worst of what the runs of one cell came to that ended well."""
    ends = [kind.best(levels) for r in records if r.get("status") == "ok" and (levels := _levels(r, kind))]
    return kind.worst(ends) if ends else None


def _levels(record: Record, kind: Kind) -> list[float]:
    found = (number(point, kind.level) for point in points_of(record))
    return [value for value in found if value is not None]


def reach_cell(records: Sequence[Record], kind: Kind, level: float, what: str, sign: str, digits: int) -> str:
    """Return the median of what runs had seen, or of the time, when a level was first measured.

    Args:
        records: of one cell.
        kind: what they are measured by.
        level: to reach.
        what: of a point: amount of data, or time.
        sign: of its unit.
        digits: after the point.

    Returns:
        The median, and how many runs reached it where not all did; a dash where none ended well.
    """
    good = [r for r in records if r.get("status") == "ok"]
    found = [value for r in good if (value := _first(r, kind, level, what)) is not None]
    if not found:
        return "not reached" if good else DASH
    share = f" ({len(found)} of {len(good)})" if len(found) < len(good) else ""
    return f"{median(found):,.{digits}f}{sign}{share}"


def _first(record: Record, kind: Kind, level: float, what: str) -> float | None:
    for point in points_of(record):
        value = number(point, kind.level)
        if value is not None and kind.best((value, level)) == value:
            return number(point, what)
    return None
