"""What the curves of recurrent runs show, and what they run over."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["DATA", "HEIGHTS", "SECONDS", "Height", "Width"]


@dataclass(frozen=True, slots=True)
class Height:
    """What a curve shows.

    Attributes:
        name: of a point's value.
        title: of the plot.
        label: of the axis, with the unit.
        stairs: does a value last until the next?
        falls: does it fall steeply at first, so that the rest needs the room?
        beside: is it what training measures itself, and stands beside what it leads to?
    """

    name: str
    title: str
    label: str
    stairs: bool = False
    falls: bool = False
    beside: bool = False


@dataclass(frozen=True, slots=True)
class Width:
    """What a curve runs over.

    Attributes:
        name: of a point's value.
        heading: over the plots.
        label: of the axis.
        units: the larger first: from where on one is used, its size, and the word for it.
    """

    name: str
    heading: str
    label: str
    units: tuple[tuple[float, float, str], ...] = ()

    def scaled(self, furthest: float) -> tuple[float, str]:
        """Return what to divide places by so that their numbers stay short, and the label that says so."""
        for least, size, word in self.units:
            if furthest >= least:
                return size, self.label + word
        return 1.0, self.label


HEIGHTS = (
    Height("sequence_length", "sequence length", "longest sequence solved", stairs=True),
    Height(
        "val_bits_per_char", "validation bits per character", "bits per character, validation", falls=True
    ),
    Height("a_accuracy_pct", "accuracy of A", "accuracy of A (%)"),
    Height("b_accuracy_pct", "accuracy of B", "accuracy of B (%)"),
    Height(
        "train_bits_per_char",
        "training bits per character",
        "bits per character, training",
        falls=True,
        beside=True,
    ),
)
_COUNTS = ((2e6, 1e6, " (millions)"), (2e4, 1e3, " (thousands)"))
#: Of these a plot runs over the first that is measured.
DATA = (
    Width("sequences_seen", "Over sequences seen", "sequences seen", _COUNTS),
    Width("chars_seen", "Over characters seen", "characters seen", _COUNTS),
    Width("examples_seen", "Over examples seen", "examples seen", _COUNTS),
    Width("step", "Over steps", "step"),
)
_TIMES = ((2e4, 3600.0, " (hours)"), (0.0, 1.0, " (s)"))
SECONDS = Width("elapsed_s", "Over seconds of training", "training time", _TIMES)
