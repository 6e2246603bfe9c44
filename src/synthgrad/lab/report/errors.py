"""Errors of several runs in one cell of a table: mean, half the range, how many, and what became of the others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from statistics import mean

from ..records import Record
from .fields import key, number, part, status, text
from .sheet import DASH

__all__ = ["ended_badly", "error_cell", "error_points", "errors_of", "failures_of", "last_of_each"]


def errors_of(records: Iterable[Record]) -> list[float]:
    """Return the test errors in percent of the runs that ended well."""
    found = (number(part(r, "metrics"), "test_error_pct") for r in records if r.get("status") == "ok")
    return [value for value in found if value is not None]


def error_points(
    records: Iterable[Record], at: Callable[[Record], float]
) -> list[tuple[float, float, float, float]]:
    """Return of each place the mean test error, and how far the best and the worst run lie from it.

    Args:
        records: of one line of a plot.
        at: the place of a record.
    """
    groups: dict[float, list[Record]] = {}
    for record in records:
        groups.setdefault(at(record), []).append(record)
    points: list[tuple[float, float, float, float]] = []
    for place, group in sorted(groups.items()):
        if errors := errors_of(group):
            middle = mean(errors)
            points.append((place, middle, middle - min(errors), max(errors) - middle))
    return points


def error_cell(records: Sequence[Record]) -> str:
    """Return ``mean ± half range (number of runs)``, and the runs that failed or diverged by that word."""
    errors = errors_of(records)
    parts: list[str] = []
    if errors:
        half = f" ± {(max(errors) - min(errors)) / 2:.2f}" if len(errors) > 1 else ""
        parts.append(f"{mean(errors):.2f}{half} ({len(errors)})")
    return ", ".join([*parts, *ended_badly(records)]) or DASH


def ended_badly(records: Iterable[Record]) -> list[str]:
    """Return how many runs did not end well, by the word for it: ``2 diverged``."""
    bad = Counter(status(r) for r in records if r.get("status") != "ok")
    return [f"{num} {ended}" for ended, num in sorted(bad.items())[:3]]


def failures_of(name: str, records: Iterable[Record]) -> list[str]:
    """Return a line for each reason why runs did not end well, under a name for them."""
    reasons = (f"{status(r)}: {text(r.get('error'), 200)}" for r in records if r.get("status") != "ok")
    return [f"{name}: {reason}" for reason in dict.fromkeys(reasons)]


def last_of_each(records: Iterable[Record]) -> list[Record]:
    """Return one record for each seed, the last."""
    return list({key(r.get("seed")): r for r in records}.values())
