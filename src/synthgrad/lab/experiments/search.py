"""A search for settings: variants of rules, measured on held-out training examples, never on test data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from .config import Cell, RuleSettings, RunConfig, Schedule

__all__ = ["Place", "Search"]


@dataclass(frozen=True, slots=True)
class Place:
    """Where the variants of a tier are tried.

    Attributes:
        cell: what is trained on what.
        schedule: how long and how fast, the same for every variant.
        hold_out: number of training examples to measure on.
        precision: as of a run.
    """

    cell: Cell
    schedule: Schedule
    hold_out: int
    precision: str = "float32"


@dataclass(frozen=True, slots=True)
class Search:
    """Variants, and where they are tried.

    Attributes:
        name: of the experiment.
        variants: methods with settings of their rules.
        places: one for each tier.
    """

    name: str
    variants: Sequence[tuple[str, RuleSettings]]
    places: Mapping[str, Place]

    def configs(self, tier: str, seeds: Sequence[int], device: str, data_dir: str | None) -> list[RunConfig]:
        """Return the runs of the search, seed by seed."""
        place = self.places[tier]
        return [
            RunConfig(
                self.name,
                tier,
                method,
                seed,
                replace(place.cell, engine="plain") if method == "backprop" else place.cell,
                place.schedule,
                rule,
                hold_out=place.hold_out,
                monitor_every=50,
                device=device,
                precision=place.precision,
                data_dir=data_dir,
            )
            for seed in seeds
            for method, rule in self.variants
        ]
