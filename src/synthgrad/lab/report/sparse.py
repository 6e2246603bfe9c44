"""The sweep over update probabilities: one table and one plot, equal updates apart from equal steps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import mean

from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from ..records import Record
from .errors import error_cell, error_points, failures_of, last_of_each
from .fields import as_number, is_sparse, key, number, part, text
from .labels import position, title_of
from .plots import Group, Plot
from .setting import setting_key
from .sheet import DASH, Sheet
from .svg import COLOURS, Legend, bars, draw, log_scale

__all__ = ["Sweep", "sparse_group", "sparse_picture", "sparse_sheet", "sparse_sweeps"]

EQUAL_UPDATES, EQUAL_STEPS, OTHER = "equal updates", "equal steps", "neither"
_KINDS = (EQUAL_UPDATES, EQUAL_STEPS, OTHER)
_MOST_SWEEPS, _MOST_METHODS = 6, len(COLOURS)
#: With more probabilities than this a row of the table is a tenth of them, and runs are drawn as dots.
_MANY = 16
_NOTES = (
    "p: probability that a module updates in a step; backprop skips all its modules at once.",
    "At equal updates a run with p makes 1/p times the steps; at equal steps it makes p times the updates.",
    "Test error in %: mean ± half the distance between best and worst (runs).",
)


@dataclass(frozen=True, slots=True)
class Sweep:
    """Runs that differ in method, update probability and steps only.

    Attributes:
        records: the last of each run.
        base_steps: steps that equal work is measured by: those of p = 1, else the most frequent.
    """

    records: tuple[Record, ...]
    base_steps: float

    @property
    def methods(self) -> list[str]:
        """The methods, in the order of all tables."""
        met = {text(r.get("method"), 40): r for r in self.records}
        return sorted(met, key=lambda name: position(met[name]))[:_MOST_METHODS]

    def kinds_of(self, record: Record) -> list[str]:
        """Return what a run has in common with those of p = 1: their updates, their steps, or both."""
        prob, steps = prob_of(record), as_number(record.get("steps")) or 0.0
        updates = abs(steps * prob - self.base_steps) <= 1  # whole steps only
        found = [
            kind for kind, fits in ((EQUAL_UPDATES, updates), (EQUAL_STEPS, steps == self.base_steps)) if fits
        ]
        return found or [OTHER]


def prob_of(record: Record) -> float:
    """Return a run's update probability."""
    return number(part(record, "cell"), "update_prob") or 0.0


def sparse_sweeps(records: Iterable[Record]) -> list[Sweep]:
    """Return the sweeps among the records, one for each setting that they share."""
    groups: dict[str, dict[str, Record]] = {}
    for record in records:
        if is_sparse(record):
            run = key([record.get("method"), prob_of(record), record.get("steps"), record.get("seed")])
            groups.setdefault(setting_key(record), {})[run] = record
    return [_sweep(list(group.values())) for group in groups.values()][:_MOST_SWEEPS]


def _sweep(records: Sequence[Record]) -> Sweep:
    whole = [r for r in records if prob_of(r) == 1] or records
    steps = Counter(as_number(r.get("steps")) or 0.0 for r in whole)
    return Sweep(tuple(records), steps.most_common(1)[0][0])


def sparse_sheet(sweep: Sweep) -> Sheet:
    """Return a sweep as text: a row for each probability and kind of comparison, a column for each method."""
    many = len({prob_of(r) for r in sweep.records}) > _MANY
    rows: dict[tuple[int, float, float], list[Record]] = {}
    for record in sweep.records:
        steps = as_number(record.get("steps")) or 0.0
        prob = min(9, int(10 * prob_of(record))) / 10 if many else prob_of(record)
        kinds = sweep.kinds_of(record)
        # With p = 1 both kinds are the same runs: they are listed once.
        for kind in kinds if prob_of(record) != 1 else kinds[-1:] if many else kinds[:1]:
            rows.setdefault((_KINDS.index(kind), prob, steps), []).append(record)
    lines: list[tuple[str, ...]] = []
    bad: list[bool] = []
    failures: list[str] = []
    for kind, prob, steps in sorted(rows, key=lambda row: (row[0], -row[1], row[2])):
        group = rows[kind, prob, steps]
        words = _KINDS[kind] if prob != 1 or many else "every update"
        label = f"{prob:g}–{prob + 0.1:.1f}" if many else f"{prob:g}"
        cells = [[r for r in group if text(r.get("method"), 40) == name] for name in sweep.methods]
        updates = f"about {mean(steps * prob_of(r) for r in group):,.0f}"
        lines.append((label, words, f"{steps:,.0f}", updates, *(error_cell(c) if c else DASH for c in cells)))
        bad.append(any(r.get("status") != "ok" for r in group))
        for name, found in zip(sweep.methods, cells, strict=True):
            failures += failures_of(f"{name}, p={label}, {steps:,.0f} steps", last_of_each(found))
    headings = ("p", "compared at", "steps", "updates of a module", *sweep.methods)
    return Sheet(_title(sweep), headings, tuple(lines), tuple(bad), tuple(failures), _NOTES)


def _title(sweep: Sweep) -> str:
    record = sweep.records[0]
    batch = text(record.get("batch_size"), 12)
    return title_of({**record, "steps": ""}).replace(f" steps of {batch}", f"batches of {batch}")


def sparse_group(sweep: Sweep, salt: str) -> Group:
    """Return the plot of a sweep: test error over the probability.

    Args:
        sweep: the runs.
        salt: tells this plot from the others of the page.
    """
    note = "Bars reach from the best to the worst seed; every point is the mean of its runs."
    return Group("Test error over p", [Plot("test error", lambda: sparse_picture(sweep, salt), 0)], note)


def sparse_picture(sweep: Sweep, salt: str = "sparse") -> str:
    """Return the plot of a sweep as SVG text: a line for each method, solid at equal updates, dashed at equal steps."""
    about = "test error over the probability of an update: " + ", ".join(sweep.methods)
    return draw(lambda axes: _paint(axes, sweep), salt, about)


def _paint(axes: Axes, sweep: Sweep) -> Legend:
    handles: list[Line2D] = []
    labels: list[str] = []
    drawn: set[str] = set()
    for method in sweep.methods:
        own = [r for r in sweep.records if text(r.get("method"), 40) == method]
        colour = COLOURS[position(own[0]) % len(COLOURS)]  # as in every plot of the page
        for kind in _KINDS[:2]:
            points = error_points([r for r in own if kind in sweep.kinds_of(r)], prob_of)
            if not points or (kind == EQUAL_STEPS and len(points) == 1 and EQUAL_UPDATES in drawn):
                continue  # p = 1 alone stands on the other line already
            drawn.add(kind)
            many = len(points) > _MANY
            bars(
                axes,
                points,
                color=colour,
                linestyle="none" if many else "-" if kind == EQUAL_UPDATES else "--",
                marker="o" if kind == EQUAL_UPDATES else "s",
                markersize=3.5 if many else 4.5,
                markerfacecolor=colour if kind == EQUAL_UPDATES or many else "none",
            )
        handles.append(Line2D([], [], color=colour, linewidth=2.2))
        labels.append(method)
    for kind in _KINDS[:2]:
        if kind in drawn:
            handles.append(
                Line2D(
                    [],
                    [],
                    color=COLOURS[-1],
                    linestyle="-" if kind == EQUAL_UPDATES else "--",
                    marker="o" if kind == EQUAL_UPDATES else "s",
                    markersize=4.5,
                    markerfacecolor=COLOURS[-1] if kind == EQUAL_UPDATES else "none",
                )
            )
            labels.append(kind)
    axes.set(xlabel="probability of an update, p", ylabel="test error (%)")
    axes.set_xlim(0, 1.04)
    low, _ = axes.get_ylim()
    if drawn and low > 0:
        log_scale(axes)
    return handles, labels
