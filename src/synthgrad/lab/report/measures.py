"""What trainings are measured by: figures of finished runs, and how a table shows those of several."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import pandas as pd

from ..records import Record
from .frame import figures, good, records_of
from .words import DASH, UNSTEADY, mean_and_spread, unit

__all__ = [
    "ERROR",
    "MEASURES",
    "Measure",
    "is_unsteady",
    "measure_named",
    "median",
    "ratio_of",
    "ratio_text",
    "unsteady_steps",
]

#: The 10–90 % spread of a ratio over its own size, from which on the ratio is not to be relied on. Of 851 ratios in
#: committed records, measured on machines with nothing else to do, the median spread is 0.08 and 99 % are below 0.5.
WIDE_RATIO = 0.5
#: The same of the times of a training's steps, which scatter more because nobody takes turns: 99.5 % are below.
WIDE_STEPS = 2.0
#: Processors that other programs kept busy when a run began, from which on it was not alone.
BUSY = 0.5


@dataclass(frozen=True, slots=True)
class Measure:
    """A figure of a finished run.

    Attributes:
        metric: its name in records.
        heading: of its column.
        digits: after the point; None for none where the figures are whole, else one.
        sign: of its unit, with a space before it.
        timed: does it depend on the machine?
    """

    metric: str
    heading: str
    digits: int | None
    sign: str = ""
    timed: bool = False

    def values(self, runs: pd.DataFrame) -> list[float]:
        """Return the figures of the runs that ended well."""
        return figures(good(runs), f"metrics.{self.metric}")

    def show(self, runs: pd.DataFrame) -> str:
        """Return mean ± half the distance between best and worst, with the unit."""
        return mean_and_spread(self.values(runs), self.digits, self.sign)

    def counted(self, runs: pd.DataFrame) -> str:
        """Return ``mean ± half range (number of runs)``, and the runs that failed or diverged by that word."""
        values = self.values(runs)
        parts = [f"{mean_and_spread(values, self.digits)} ({len(values)})"] if values else []
        bad = runs.loc[~runs["ok"], "status"].value_counts().sort_index()
        return ", ".join([*parts, *(f"{num} {ended}" for ended, num in list(bad.items())[:3])]) or DASH


ERROR = Measure("test_error_pct", "test error", 2, " %")
#: In the order of their columns. A table has those that its runs were measured by.
MEASURES = (
    Measure("sequence_length", "sequence length", None),
    Measure("bits_per_char", "bits per character", 3),
    Measure("a_accuracy_pct", "accuracy of A", 2, " %"),
    Measure("b_accuracy_pct", "accuracy of B", 2, " %"),
    Measure("sequences_to_longest", "sequences to longest", 0),
    Measure("time_to_longest_s", "time to longest", 1, " s", timed=True),
    Measure("chars_to_best", "characters to best", 0),
    Measure("time_to_best_s", "time to best", 1, " s", timed=True),
    Measure("a_updates_per_s", "updates of A", 1, " /s", timed=True),
    Measure("b_updates_per_s", "updates of B", 1, " /s", timed=True),
)


def measure_named(metric: str) -> Measure:
    """Return the measure of that name."""
    return next(m for m in MEASURES if m.metric == metric)


def mean(values: Sequence[float]) -> float | None:
    """Return the mean; None of nothing."""
    return sum(values) / len(values) if values else None


def median(values: Iterable[float]) -> float | None:
    """Return the median; None of nothing."""
    found = pd.Series(list(values), dtype=float)
    return float(found.median()) if len(found) else None


def ratio_of(runs: pd.DataFrame, reference: pd.DataFrame) -> float | None:
    """Return the ratio of step times: over the seeds that both have, or over all if they share none."""
    common = set(runs["seed"]) & set(reference["seed"])
    own, theirs = (
        median(figures(part[part["seed"].isin(common)] if common else part, "time.step_ms_median"))
        for part in (runs, reference)
    )
    return own / theirs if own is not None and theirs else None


def is_unsteady(
    ratio: float | None, low: float | None, high: float | None, records: Iterable[Record] = ()
) -> bool:
    """May another measurement of a ratio come out otherwise: is its spread wide, or was the machine busy?

    Args:
        ratio: of two times.
        low: its 10 % point; None if not known.
        high: its 90 % point; None if not known.
        records: of the runs that were timed.
    """
    if ratio is None:
        return False
    wide = low is not None and high is not None and high - low > WIDE_RATIO * abs(ratio)
    return wide or any((r.env.other_load or 0.0) > BUSY for r in records)


def unsteady_steps(*runs: pd.DataFrame) -> bool:
    """Do the times of the steps of some trainings scatter too much for a ratio of them, or was the machine busy?"""
    for record in records_of(pd.concat(runs)):
        time = record.time
        spread = (time.step_ms_p90 or 0.0) - (time.step_ms_p10 or 0.0)
        if spread > WIDE_STEPS * (time.step_ms_median or 0.0) or (record.env.other_load or 0.0) > BUSY:
            return True
    return False


def ratio_text(ratio: float | None, *, unsteady: bool = False) -> str:
    """Return a ratio, marked if another measurement may not confirm it."""
    return unit("ratio", ratio) + (f" {UNSTEADY}" if unsteady and ratio is not None else "")
