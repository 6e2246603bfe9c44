"""Values as short texts: numbers with their units, means with their spread, anything else in one line."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from importlib.resources import files

__all__ = [
    "DASH",
    "TEXTS",
    "UNSTEADY",
    "heading_of",
    "key",
    "mean_and_spread",
    "natural",
    "shorten",
    "text",
    "unit",
]

#: Stands where there is nothing to say.
DASH = "—"

#: Sentences of tables and pages.
TEXTS: Mapping[str, Mapping[str, str]] = tomllib.loads(
    (files("synthgrad.lab.report") / "texts.toml").read_text(encoding="utf-8")
)

#: Stands beside a ratio that another measurement may not confirm.
UNSTEADY = "(unsteady)"

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
    if value is None or value != value:
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


def heading_of(name: str) -> str:
    """Return a metric's name without its unit, which stands in the cells."""
    words = text(name.removesuffix("_per_s"), 40).split("_")
    kept = [word for word in words if word not in _UNITS]
    return " ".join(kept or words)


def mean_and_spread(values: Sequence[float], digits: int | None, sign: str = "") -> str:
    """Return mean ± half the distance between best and worst, with the unit; a dash for no value.

    Args:
        values: of several runs.
        digits: after the point; None for none where the figures are whole, else one.
        sign: of the unit, with a space before it.
    """
    if not values:
        return DASH
    middle, half = sum(values) / len(values), (max(values) - min(values)) / 2
    digits = digits if digits is not None else int(middle != int(middle) or half != int(half))
    spread = f" ± {half:,.{digits}f}" if len(values) > 1 else ""
    return f"{middle:,.{digits}f}{spread}{sign}"


def shorten(words: str, most: int) -> str:
    """Return the words in one line of at most ``most`` characters, without control characters."""
    if len(words) <= most and words.isprintable():
        return words  # nearly all are like that, and a report asks of millions
    line = " ".join("".join(c if c.isprintable() else " " for c in words[: 4 * most]).split())
    return line if len(line) <= most else line[: most - 1].rstrip() + "…"


def text(value: object, most: int = 80) -> str:
    """Return a value as one line of at most ``most`` characters."""
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, int) and value.bit_length() > 128:
        return "a very long number"
    if isinstance(value, Mapping):
        words = ", ".join(f"{text(k, most)}: {text(v, most)}" for k, v in list(value.items())[:most])
    elif isinstance(value, Sequence) and not isinstance(value, str):
        words = ", ".join(text(v, most) for v in value[:most])
    else:
        words = str(value)
    return shorten(words, most)


def key(value: object) -> str:
    """Return a string that is equal for equal values, to group by."""
    return json.dumps(
        value, sort_keys=True, default=lambda part: dict(part) if isinstance(part, Mapping) else str(part)
    )


def natural(name: str) -> list[tuple[int, str]]:
    """Return what to sort names by so that layer10 comes after layer9."""
    return [(int(word), "") if word.isdecimal() else (-1, word) for word in re.split(r"(\d{1,9})", name)]
