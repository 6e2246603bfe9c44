"""Late corrections with several weights: validation bits per character over the weight, by lag and share of messages."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from ..records import Record
from .facets import RATE, WEIGHT, short_label
from .frame import first, groups, num_bad
from .language_models import LOWEST, difference_text, late_values, naming_columns
from .measures import mean
from .plot import COLOURS, DASHES, Group, Line, Plot, Point
from .rates import VALIDATION
from .sheet import Column, Sheet, sheet_of
from .trainings import Table
from .words import DASH, TEXTS

__all__ = ["correction_groups", "correction_plots", "correction_sheets"]

_METHOD, _FOUND = "late_correction", "by agreement"
_TITLE = "bits per character over the weight of corrections"


@dataclass(frozen=True, slots=True)
class _Curve:
    """Runs that differ in their weight alone: a row for each weight, ascending."""

    rows: tuple[pd.DataFrame, ...]

    @property
    def found(self) -> pd.DataFrame:
        """The runs whose weights the rule found; none if there are none."""
        rows = [runs for runs in self.rows if _is_found(runs)]
        return rows[0] if rows else self.rows[0].head(0)

    @property
    def best(self) -> pd.DataFrame:
        """The row with the fewest bits per character."""
        return min(self.rows, key=lambda runs: _order(_bits(runs)))


def _is_found(runs: pd.DataFrame) -> bool:
    return WEIGHT.value(first(runs)) == _FOUND


def _bits(runs: pd.DataFrame) -> float | None:
    return mean(VALIDATION.values(runs))


def _order(value: float | None) -> float:
    return float("inf") if value is None else value


def _weight_of(record: Record) -> float | None:
    """Return the weight of a run's corrections; of weights that the rule found their mean over the last third of the curve."""
    rule = record.config.rule
    if WEIGHT.value(record) != _FOUND:
        return rule.number("weight") if "weight" in rule else float(WEIGHT.value(record))
    return mean(list(late_values(record, "weight").values()))


def _curves(table: Table) -> list[_Curve]:
    """Return the late corrections that were trained with several weights."""
    found: dict[tuple[str, str], list[pd.DataFrame]] = {}
    for _, runs in groups(table.runs[table.runs["method"] == _METHOD], "label"):
        record = first(runs)
        found.setdefault((short_label(record, {}, but=(WEIGHT,)), RATE.value(record)), []).append(runs)
    return [
        _Curve(tuple(sorted(rows, key=lambda runs: _order(_weight_of(first(runs))))))
        for rows in found.values()
        if len({WEIGHT.value(first(runs)) for runs in rows}) > 1
    ]


def correction_sheets(table: Table) -> list[Sheet]:
    """Return a table of late corrections by lag, share of messages and weight; none if there are no several weights."""
    curves = _curves(table)
    if not curves:
        return []
    rows = [runs for curve in curves for runs in curve.rows]
    curve_of = {runs["label"].iloc[0]: curve for curve in curves for runs in curve.rows}

    def weight(runs: pd.DataFrame) -> str:
        found = _weight_of(first(runs))
        if not _is_found(runs):
            return WEIGHT.value(first(runs))
        return _FOUND if found is None else f"{found:.3g} ({_FOUND})"

    def bits(runs: pd.DataFrame) -> str:
        said = VALIDATION.show(runs)
        return f"{said} {LOWEST}" if said != DASH and curve_of[runs["label"].iloc[0]].best is runs else said

    def difference(runs: pd.DataFrame) -> str:
        reference = curve_of[runs["label"].iloc[0]].found
        return DASH if _is_found(runs) else difference_text(VALIDATION, runs, reference)

    columns = [
        *naming_columns(rows, but=(WEIGHT,)),
        Column(WEIGHT.name, weight, key=True),
        Column(VALIDATION.heading, bits),
        Column("difference to the weight by agreement", difference, optional=True),
    ]
    said = TEXTS["language"]
    notes = [said["weights"]]
    notes += [said["weight_difference"]] if any(len(curve.found) for curve in curves) else []
    title = f"weights of late corrections · {table.title}"
    return [sheet_of(title, columns, rows, is_bad=lambda runs: num_bad(runs) > 0, notes=notes)]


def _point(runs: pd.DataFrame) -> Point | None:
    weight, values = _weight_of(first(runs)), VALIDATION.values(runs)
    middle = mean(values)
    if weight is None or middle is None:
        return None
    return (weight, middle, middle - min(values), max(values) - middle)


def correction_plots(table: Table) -> list[Plot]:
    """Return the plot of bits over weight, a line for each lag and share of messages; none without several weights."""
    drawn = [(curve, points) for curve in _curves(table) if len(points := _points(curve)) > 1]
    drawn = drawn[: len(COLOURS) - 2]  # the last two are those of signs
    if not drawn:
        return []
    name = naming_columns([curve.rows[0] for curve, _ in drawn], but=(WEIGHT,))[0].cell
    lines: list[Line] = []
    for k, (curve, points) in enumerate(drawn):
        found = _point(curve.found) if len(curve.found) else None
        lines.append(Line(name(curve.rows[0]), points, k, k % len(DASHES), "o"))
        lines += [Line("", (found,), k, None, "*")] if found else []
    if any(line.marker == "*" for line in lines):
        lines.append(Line("weight by agreement", (), len(COLOURS) - 2, None, "*"))
    about = f"{_TITLE}: {', '.join(line.name for line in lines if line.name)}"
    labels = ("weight of a late correction", VALIDATION.heading)
    positive = all(point[0] > 0 for line in lines for point in line.points)
    return [Plot(_TITLE, *labels, tuple(lines), about, rank=3, log_x=positive)]


def _points(curve: _Curve) -> tuple[Point, ...]:
    return tuple(point for runs in curve.rows if (point := _point(runs)))


def correction_groups(table: Table) -> list[Group]:
    """Return the plot of bits over weights with what a reader must know of it."""
    plots = correction_plots(table)
    return [Group("Weights of late corrections", plots, TEXTS["language"]["weights"])] if plots else []
