"""The median of several curves that were measured at different places, as stairs or as lines."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from statistics import median

from .curves import Points
from .svg import thin

__all__ = ["median_line", "median_over_time"]


def median_line(curves: Sequence[Points], *, stairs: bool) -> Points:
    """Return the median of some curves wherever all of them are known.

    Args:
        curves: points of each, in any order.
        stairs: does a height last until the next point? Else it changes evenly up to that.

    Returns:
        Points where any curve has one, from where the last begins to where the first ends; of very many some.
        Empty where they never meet.
    """
    ordered = [sorted(points, key=lambda point: point[0]) for points in curves if points]
    if not ordered:
        return []
    begin, end = max(points[0][0] for points in ordered), min(points[-1][0] for points in ordered)
    places = sorted({a for points in ordered for a, _ in points if begin <= a <= end})
    few = [a for a, _ in thin([(a, 0.0) for a in places])]
    return [(a, median(_height(points, a, stairs=stairs) for points in ordered)) for a in few]


def median_over_time(curves: Sequence[Sequence[tuple[float, float, float]]], *, stairs: bool) -> Points:
    """Return the median height over the median time, both at equal amounts of data.

    At equal times the curve would end with the fastest run, and a slow one would be held against what others
    had learned from more data.

    Args:
        curves: for each, amount of data, time and height of its points.
        stairs: does a height last until the next point?
    """
    times = median_line([[(seen, time) for seen, time, _ in points] for points in curves], stairs=False)
    heights = median_line(
        [[(seen, height) for seen, _, height in points] for points in curves], stairs=stairs
    )
    return [(time, height) for (_, time), (_, height) in zip(times, heights, strict=True)]


def _height(points: Points, place: float, *, stairs: bool) -> float:
    """Return the height of a curve at a place within it."""
    after = bisect_right(points, place, key=lambda point: point[0])
    left, low = points[after - 1]
    if stairs or after == len(points):
        return low
    right, high = points[after]
    return low + (high - low) * (place - left) / (right - left)
