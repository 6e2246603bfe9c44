"""A table as text: what the terminal, the page and the documents all show."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace

__all__ = ["DASH", "Sheet", "as_markdown", "noted_markdown", "unit"]

#: Stands where there is nothing to say.
DASH = "—"


@dataclass(frozen=True, slots=True)
class Sheet:
    """Headings and rows of text.

    Attributes:
        title: what the table is about.
        headings: one for each column; the first column names the row.
        rows: texts, as many as there are headings.
        bad: for each row, whether a run of it failed or diverged.
        failures: what went wrong, a line for each such row.
        notes: what a reader must know of the numbers.
    """

    title: str
    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    bad: tuple[bool, ...]
    failures: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def without(self, gone: Callable[[str], bool]) -> Sheet:
        """Return the table without the columns whose heading is to go."""
        kept = [k for k, heading in enumerate(self.headings) if not gone(heading)]
        return replace(
            self,
            headings=tuple(self.headings[k] for k in kept),
            rows=tuple(tuple(row[k] for k in kept) for row in self.rows),
        )

    def without_empty(self, optional: Collection[str]) -> Sheet:
        """Return the table without those of the optional columns that say nothing in any row."""
        empty = {h for k, h in enumerate(self.headings) if all(row[k] == DASH for row in self.rows)}
        return self.without(lambda heading: heading in optional and heading in empty)


def as_markdown(sheet: Sheet) -> str:
    """Return the table for a document, without title, failures and notes."""
    lines = [_line(sheet.headings), "|---" * len(sheet.headings) + "|", *map(_line, sheet.rows)]
    return "\n".join(lines) + "\n"


def noted_markdown(sheet: Sheet) -> str:
    """Return the table for a document under its title, with what went wrong and its notes in a line each."""
    lines = "".join(f"\n*{line}*\n" for line in (*sheet.failures, *sheet.notes))
    return f"**{sheet.title}**\n\n{as_markdown(sheet)}{lines}"


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(c.replace("|", "\\|").replace("\n", " ") for c in cells) + " |"


#: What a part of a metric's name says of its unit: what to divide by, digits, and the sign of it.
_UNITS: Mapping[str, tuple[float, int, str]] = {
    "ms": (1.0, 2, " ms"),
    "us": (1.0, 1, " µs"),
    "s": (1.0, 1, " s"),
    "bytes": (2.0**20, 2, " MiB"),
    "pct": (1.0, 2, " %"),
}


def unit(name: str, value: float | None) -> str:
    """Return a metric with the unit that its name says: ``step_ms_median``, ``saved_bytes_peak``, ``ratio_…``."""
    if value is None:
        return DASH
    words = name.split("_")
    if words[0] == "ratio":
        return f"{value:.2f} ×"
    if name.endswith("_per_s"):
        return f"{value:,.0f} /s" if value >= 100 else f"{value:.3g} /s"
    for word in reversed(words):
        if word in _UNITS:
            scale, digits, sign = _UNITS[word]
            return f"{value / scale:,.{digits}f}{sign}"
    return f"{value:,.0f}" if value == int(value) else f"{value:.4g}"
