"""Curves of trainings as plots: every run thin where there are several, and their median bold."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from .frame import good, groups
from .measures import Measure
from .plot import Line, Plot, Point, styled

__all__ = [
    "AMOUNTS",
    "SECONDS",
    "STEPS",
    "TOKENS",
    "TRAINING_BITS",
    "VALIDATION_BITS",
    "Axis",
    "curves",
    "flat",
]
__all__ += ["means_of", "median_of", "points_of", "scaled"]

_MOST_RUNS = 10  # of a row that are drawn


@dataclass(frozen=True, slots=True)
class Axis:
    """What curves show or run over.

    Attributes:
        name: of the value, in the points of a curve.
        title: of the plot, or of the group over it.
        label: of the axis.
        unit: in brackets after the label; empty for none.
        kind: of heights: ``stairs`` if a value lasts until the next, ``falls`` if it falls steeply at first, so that
            the rest needs the room, ``log`` if heights are logarithmic, with zero at the edge; of places: ``amount``
            if they count what grows large.
        steep: of heights that fall: the part of a curve at whose end the room begins.
    """

    name: str
    title: str
    label: str
    unit: str = ""
    kind: str = ""
    steep: float = 0.1

    @property
    def words(self) -> str:
        """The label with its unit."""
        return f"{self.label} ({self.unit})" if self.unit else self.label


STEPS = Axis("step", "Over steps", "step")
SECONDS = Axis("elapsed_s", "Over seconds of training", "training time", "s")
TOKENS = Axis("tokens_seen", "Over tokens seen", "tokens seen", kind="amount")
#: Of these a plot of recurrent runs goes over the first that is measured.
AMOUNTS = (
    Axis("sequences_seen", "Over sequences seen", "sequences seen", kind="amount"),
    Axis("chars_seen", "Over characters seen", "characters seen", kind="amount"),
    Axis("examples_seen", "Over examples seen", "examples seen", kind="amount"),
    STEPS,
)
VALIDATION_BITS = Axis(
    "val_bits_per_char", "validation bits per character", "bits per character, validation", kind="falls"
)
TRAINING_BITS = Axis(
    "train_bits_per_char", "training bits per character", "bits per character, training", kind="falls"
)


def points_of(runs: pd.DataFrame) -> pd.DataFrame:
    """Return the points of some runs' curves: ``run``, ``label``, ``unroll``, ``ok``, ``quality``, and every figure."""
    rows = [
        {"run": k, "label": label, "unroll": unroll, "ok": record.status == "ok", "quality": point.quality}
        | {name: point.number(name) for name in point if name != "quality"}
        for (label, unroll), own in groups(runs, "label", "unroll")
        for k, record in own["record"].head(_MOST_RUNS).items()
        for point in record.curve
    ]
    return pd.DataFrame(rows, columns=None if rows else ["run", "label", "unroll", "ok", "quality"])


def _pairs(own: pd.DataFrame, place: Axis, height: Axis) -> list[tuple[float, float]]:
    """Return a run's points; stairs from their foot, for nothing was solved before."""
    if place.name not in own or height.name not in own:
        return []
    both = zip(own[place.name].astype(float), own[height.name].astype(float), strict=True)
    pairs = [(a, b) for a, b in both if a == a and b == b]
    return [(0.0, 0.0), *pairs] if height.kind == "stairs" and pairs and min(pairs)[0] > 0 else pairs


def median_of(points: pd.DataFrame, place: Axis, height: Axis, data: Axis) -> tuple[Point, ...]:
    """Return the median of the runs that ended well, wherever all of them are known.

    Both place and height are medians at equal amounts of data: at equal times the curve would end with the fastest
    run, and a slow one would be held against what others had learned from more data.
    """
    sides: list[pd.Series[float]] = []
    for axis in (place, height):
        found = {run: dict(_pairs(own, data, axis)) for run, own in groups(points[points["ok"]], "run")}
        if height.kind == "stairs":
            found = {run: {0.0: 0.0} | curve for run, curve in found.items() if curve}
        whole = pd.DataFrame({run: pd.Series(curve, dtype=float) for run, curve in found.items() if curve})
        if not len(whole):
            return ()
        whole = whole.sort_index()
        shown = (
            whole.ffill() if axis.kind == "stairs" else whole.interpolate(method="index", limit_area="inside")
        )
        ends = [float(column.dropna().index[-1]) for _, column in whole.items()]
        sides.append(shown.dropna().loc[: min(ends)].median(axis=1))
    # A damaged record may have an end for one axis and another for the other.
    both = pd.concat(sides, axis=1, join="inner")
    return flat(both.itertuples(index=False, name=None))


def flat(pairs: Iterable[tuple[Any, Any]]) -> tuple[Point, ...]:
    """Return points without bars."""
    return tuple((float(a), float(b), 0.0, 0.0) for a, b in pairs)


def curves(
    points: pd.DataFrame, place: Axis, height: Axis, data: Axis, rank: int = 0, named: Sequence[str] = ()
) -> Plot | None:
    """Return a plot of some rows: every run, thin where there are several, and then their median, bold.

    Args:
        points: of `points_of`.
        place: what the curves run over.
        height: what they show.
        data: the amount of data, at equal ones of which medians are taken.
        rank: of the plot.
        named: rows that share their styles with other plots; empty for those that have points.
    """
    rows = {row: own for row, own in groups(points, "label") if _pairs(own, place, height)}
    values = pd.Series([b for own in rows.values() for _, b in _pairs(own, place, height)], dtype=float)
    lines: list[Line] = []
    top = 100 * values.median() if len(values) else 0.0  # a diverging run would hide all others
    for row, style in styled(named or list(rows)).items():
        if row not in rows:
            continue
        runs = {run: pairs for run, own in groups(rows[row], "run") if (pairs := _pairs(own, place, height))}
        bad = set(rows[row].loc[~rows[row]["ok"], "run"]) & set(runs)
        name = row + ("" if not bad else " ×" if len(bad) == len(runs) else f" × ({len(bad)} of {len(runs)})")
        usual = Line(name, (), *style, width=2.0, stairs=height.kind == "stairs")
        for run, pairs in runs.items():
            shown = flat((a, min(b, top)) if run in bad and top > 0 else (a, b) for a, b in pairs)
            one = replace(usual, points=shown, marker="." if len(shown) < 12 and not usual.stairs else "")
            several = len(runs) > 1
            lines.append(replace(one, name="" if several else name, faint=several, ended=run in bad))
        lines += [replace(usual, points=median_of(rows[row], place, height, data))] if len(runs) > 1 else []
    plot = Plot(
        height.title, place.words, height.words, tuple(lines), rank=rank, log_y=height.kind == "falls"
    )
    if height.kind == "log":
        above = values[values > 0]  # an error of zero has no place on a logarithmic axis
        zero = ", 0 at edge" if len(above) and values.min() <= 0 else ""
        floor = float(above.min()) / 2 if len(above) else None
        plot = replace(plot, floor=floor, log_y=len(above) > 0, y_label=plot.y_label + zero)
    return scaled(plot, place, height) if lines else None


def scaled(plot: Plot, place: Axis, height: Axis) -> Plot:
    """Return a plot in units that keep numbers short, whose heights leave out the steep beginning of what falls."""
    whole = [line.points for line in plot.lines if line.points]
    furthest = max((p[0] for points in whole for p in points), default=0.0)
    size, word = 1.0, place.unit
    if place is SECONDS and furthest >= 2e4:
        size, word = 3600.0, "hours"
    elif place.kind == "amount" and furthest >= 2e4:
        size, word = (1e6, "millions") if furthest >= 2e6 else (1e3, "thousands")
    high = max(
        (p[1] for points in whole for p in points if p[0] >= height.steep * points[-1][0]), default=0.0
    )
    low = min((p[1] for points in whole for p in points), default=0.0)
    if height.kind == "stairs":
        plot = replace(plot, y_range=(0.0, 1.06 * max(1.0, high)))
    elif height.kind == "falls" and high > low:
        plot = replace(plot, y_range=(low - 0.03 * (high - low), high + 0.03 * (high - low)))
    lines = tuple(
        replace(line, points=tuple((p[0] / size, *p[1:]) for p in line.points)) for line in plot.lines
    )
    return replace(plot, lines=lines, x_label=replace(place, unit=word).words)


def means_of(runs: pd.DataFrame, measure: Measure, at: str) -> tuple[Point, ...]:
    """Return of each place the mean of its runs, and how far the best and the worst lie from it."""
    name = f"metrics.{measure.metric}"
    if name not in runs:
        return ()
    found = good(runs).dropna(subset=[name]).groupby(at)[name].agg(["mean", "min", "max"])
    return tuple(
        (float(p), float(m), float(m - low), float(high - m)) for p, m, low, high in found.itertuples()
    )
