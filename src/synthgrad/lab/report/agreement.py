"""How far the credit at each interface of a language model agrees with the true gradient, and what its row loses."""

from __future__ import annotations

import pandas as pd

from .frame import good, groups, num_bad, records_of
from .language_models import (
    DIFFERENCE,
    SYNCHRONOUS,
    difference_text,
    differences_to,
    late_values,
    naming_columns,
    reference_of,
)
from .measures import mean
from .plot import COLOURS, Group, Line, Plot, thin
from .rates import VALIDATION, at_best_rates
from .sheet import Column, Sheet, sheet_of
from .trainings import Table
from .words import TEXTS, mean_and_spread, natural, text

__all__ = ["agreement_groups", "agreement_plots", "agreement_sheets"]

_MOST_INTERFACES, _MOST_ROWS = 12, 20
_MARKERS = "os^Dv<>pXP"
_TITLE = "bits lost over the cosine of the credit"


def _cosines(runs: pd.DataFrame) -> dict[str, list[float]]:
    """Return the late cosines of each run that ended well, by interface, the lowest interface first."""
    found: dict[str, list[float]] = {}
    for record in records_of(good(runs)):
        for name, cosine in late_values(record, "cosine").items():
            found.setdefault(name, []).append(cosine)
    return {name: found[name] for name in sorted(found, key=natural)}


def _measured_rows(table: Table) -> list[tuple[pd.DataFrame, dict[str, list[float]]]]:
    """Return the rows whose credit was measured, at the best of their learning rates, with their cosines."""
    best = at_best_rates(table.runs)
    rows = [runs for _, runs in groups(best.sort_values("place", kind="stable"), "label")]
    return [(runs, cosines) for runs in rows if (cosines := _cosines(runs))]


def agreement_sheets(table: Table) -> list[Sheet]:
    """Return a table of the cosine of credit and true gradient by row and interface; none if it was never measured."""
    measured = {runs["label"].iloc[0]: (runs, cosines) for runs, cosines in _measured_rows(table)}
    if not measured:
        return []
    rows = [runs for runs, _ in measured.values()]
    interfaces = sorted({name for _, cosines in measured.values() for name in cosines}, key=natural)

    def cosine_after(interface: str) -> Column[pd.DataFrame]:
        def cell(runs: pd.DataFrame) -> str:
            cosines = measured[runs["label"].iloc[0]][1].get(interface, [])
            return mean_and_spread(cosines, 3).replace("-", "−")

        return Column(f"after {text(interface, 30)}", cell)

    def lost(runs: pd.DataFrame) -> str:
        return difference_text(VALIDATION, runs, reference_of(table, runs))

    columns = [
        *naming_columns(rows),
        *map(cosine_after, thin(interfaces, _MOST_INTERFACES)),
        Column(DIFFERENCE, lost, optional=True),
    ]
    notes = [TEXTS["language"]["cosine"]]
    notes += [TEXTS["language"]["difference"]] if (table.runs["method"] == SYNCHRONOUS).any() else []
    title = f"cosine of the credit · {table.title}"
    return [sheet_of(title, columns, rows, is_bad=lambda runs: num_bad(runs) > 0, notes=notes)]


def agreement_plots(table: Table) -> list[Plot]:
    """Return the plot of the bits that rows lose over the cosine at their lowest interface; none without both."""
    drawn: list[tuple[pd.DataFrame, tuple[float, float, float, float]]] = []
    for runs, cosines in _measured_rows(table):
        lost = [bits for bits, _ in differences_to(VALIDATION, runs, reference_of(table, runs))]
        place, middle = mean(next(iter(cosines.values()))), mean(lost)
        if place is not None and middle is not None:
            drawn.append((runs, (place, middle, middle - min(lost), max(lost) - middle)))
    if not drawn:
        return []
    drawn = sorted(drawn, key=lambda entry: entry[1][1])[:_MOST_ROWS]
    name = naming_columns([runs for runs, _ in drawn])[0].cell
    lines = [
        Line(f"{k}  {name(runs)}", (point,), k % len(COLOURS), None, _MARKERS[k % len(_MARKERS)], tag=f"{k}")
        for k, (runs, point) in enumerate(drawn, 1)
    ]
    left = min(0.0, *(point[0] for _, point in drawn)) - 0.02
    right = max(0.0, *(point[0] for _, point in drawn)) + 0.05
    level = Line(SYNCHRONOUS, ((left, 0.0, 0.0, 0.0), (right, 0.0, 0.0, 0.0)), len(COLOURS) - 1, 3)
    labels = (
        "cosine with the true gradient, lowest interface",
        "bits per character above backprop",
    )
    about = f"{_TITLE}: {', '.join(name(runs) for runs, _ in drawn)}"
    return [Plot(_TITLE, *labels, (level, *lines), about, rank=3, x_range=(left, right))]


def agreement_groups(table: Table) -> list[Group]:
    """Return the plot of bits lost over cosines with what a reader must know of it."""
    plots = agreement_plots(table)
    return (
        [Group("Bits lost over the cosine of the credit", plots, TEXTS["language"]["cosine_plot"])]
        if plots
        else []
    )
