"""What recurrent networks are measured by: the figures of a finished run, and how a table shows those of several."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import mean

from ..records import Record
from .errors import ended_badly
from .fields import number, part
from .sheet import DASH

__all__ = ["MEASURES", "Measure", "measure_cell", "measure_named", "values_of"]


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

    def show(self, values: Sequence[float]) -> str:
        """Return mean ± half the distance between best and worst, with the unit; a dash for none."""
        if not values:
            return DASH
        middle, half = mean(values), (max(values) - min(values)) / 2
        digits = self.digits if self.digits is not None else int(middle != int(middle) or half != int(half))
        spread = f" ± {half:,.{digits}f}" if len(values) > 1 else ""
        return f"{middle:,.{digits}f}{spread}{self.sign}"


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


def values_of(records: Iterable[Record], metric: str) -> tuple[float, ...]:
    """Return a figure of the runs that ended well."""
    found = (number(part(r, "metrics"), metric) for r in records if r.get("status") == "ok")
    return tuple(value for value in found if value is not None)


def measure_cell(records: Sequence[Record], measure: Measure) -> str:
    """Return ``mean ± half range (number of runs)``, and the runs that failed or diverged by that word."""
    values = values_of(records, measure.metric)
    parts = [f"{measure.show(values)} ({len(values)})"] if values else []
    return ", ".join([*parts, *ended_badly(records)]) or DASH
