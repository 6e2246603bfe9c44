"""The sweep over lags: test error over how many steps late the messages come."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import mean

from matplotlib.axes import Axes
from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

from ..records import Record
from .errors import error_points, errors_of, last_of_each
from .fields import number, text
from .labels import position, rule_settings
from .plots import Group, Plot
from .svg import COLOURS, Legend, bars, draw, log_scale

__all__ = ["has_lags", "lag_group", "lag_picture"]

_MOST_METHODS = len(COLOURS)
_REFERENCE = "backprop"


def has_lags(records: Iterable[Record]) -> bool:
    """Are these runs of the sweep over lags?"""
    return all(r.get("experiment") == "lag" for r in records)


def lag_group(records: Sequence[Record], salt: str) -> Group:
    """Return the plot of a sweep.

    Args:
        records: the runs.
        salt: tells this plot from the others of the page.
    """
    note = "Bars reach from the best to the worst seed; every point is the mean of its runs."
    return Group("Test error over lag", [Plot("test error", lambda: lag_picture(records, salt), 0)], note)


def lag_picture(records: Sequence[Record], salt: str = "lag") -> str:
    """Return the plot of a sweep as SVG text: a line for each method, dotted for what has no lag."""
    names = list(_methods(records))
    return draw(lambda axes: _paint(axes, records), salt, "test error over lag: " + ", ".join(names))


def _lag_of(record: Record) -> float:
    return number(rule_settings(record), "delay") or 0.0


def _methods(records: Iterable[Record]) -> dict[str, list[Record]]:
    """Return the runs of each method, in the order of all tables."""
    found: dict[str, list[Record]] = {}
    for record in sorted(records, key=position):
        found.setdefault(text(record.get("method"), 40), []).append(record)
    return dict(list(found.items())[:_MOST_METHODS])


def _paint(axes: Axes, records: Sequence[Record]) -> Legend:
    lags: set[float] = set()
    for method, own in _methods(records).items():
        colour = COLOURS[position(own[0]) % len(COLOURS)]  # as in every plot of the page
        if method == _REFERENCE:
            if errors := errors_of(last_of_each(own)):
                axes.axhline(mean(errors), color=colour, linestyle=":", linewidth=1.6, label=method)
            continue
        if points := error_points(own, _lag_of):
            lags.update(point[0] for point in points)
            bars(axes, points, color=colour, label=method)
    axes.set_xscale("symlog", base=2, linthresh=1)
    axes.xaxis.set_major_locator(FixedLocator(sorted(lags)))
    axes.xaxis.set_major_formatter(FixedFormatter([f"{lag:g}" for lag in sorted(lags)]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set(xlabel="lag of the messages (steps)", ylabel="test error (%)")
    if lags and axes.get_ylim()[0] > 0:
        log_scale(axes)
    return None
