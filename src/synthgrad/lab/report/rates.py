"""Which learning rate is best for a row of language models: the one with the fewest validation bits per character."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd

from .facets import RATE
from .frame import checked, first, frame_of, groups, latest, records_of, where
from .labels import row_label
from .measures import Measure, mean

__all__ = ["VALIDATION", "at_best_rates", "best_rates", "chosen_rates", "rates_of", "searched"]

VALIDATION = Measure("val_bits_per_char", "bits per character, validation", 3)


def rates_of(runs: pd.DataFrame) -> dict[str, dict[str, float | None]]:
    """Return the bits of each row at each of its rates, as text: the mean over seeds, None if no run ended well."""
    found: dict[str, dict[str, float | None]] = {}
    for _, own in groups(runs, "label"):
        record = first(own)
        found.setdefault(row_label(record), {})[RATE.value(record)] = mean(VALIDATION.values(own))
    return found


def best_rates(runs: pd.DataFrame) -> dict[str, str]:
    """Return the best rate of each row, as text; of equal ones the lowest, and of rows that never ended well the first."""

    def order(rate: str, bits: float | None) -> tuple[float, float]:
        return (float("inf") if bits is None else bits, float(rate or 0))

    return {row: min(bits, key=lambda rate: order(rate, bits[rate])) for row, bits in rates_of(runs).items()}


def searched(runs: pd.DataFrame) -> set[str]:
    """Return the rows that were trained with several rates."""
    return {row for row, bits in rates_of(runs).items() if len(bits) > 1}


def at_best_rates(runs: pd.DataFrame) -> pd.DataFrame:
    """Return the runs with the best rate of their row."""
    best = best_rates(runs)
    return where(runs, (RATE.value(r) == best[row_label(r)] for r in records_of(runs)))


def chosen_rates(records: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Return the best learning rate of each row of a search: the one with the fewest validation bits per character.

    Args:
        records: of language models of one text, network and number of updates; typed, or objects of lines. Of a run
            that was recorded twice the last counts.

    Returns:
        The rates, by the names that `row_label` gives to rows. Rows of which no run ended well are left out.

    Raises:
        ValueError: if they are of several texts, networks or numbers of updates, whose bits cannot be compared.
    """
    runs = frame_of(checked(records)[0])
    runs = latest(runs[runs["kind"] == "language"], "setting", "steps", "label", "seed")
    if (count := len(groups(runs, "setting", "steps"))) > 1:
        raise ValueError(
            f"records of {count} settings of language models: expected one text, network and length"
        )
    known = {row for row, bits in rates_of(runs).items() if any(b is not None for b in bits.values())}
    return {row: float(rate) for row, rate in best_rates(runs).items() if row in known and rate}
