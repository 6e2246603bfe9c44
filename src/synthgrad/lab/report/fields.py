"""Reading a record whatever it holds: a part, a number or a text of it, and nothing that could fail later.

Reports are made from files that other versions wrote and that disks damaged. What is not of the kind
that is asked for counts as not there.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from ..records import Record

__all__ = [
    "as_number",
    "is_bench",
    "is_recurrent",
    "is_sparse",
    "key",
    "number",
    "part",
    "shorten",
    "status",
    "text",
]

_MOST = 1e30  # no loss, time or size is larger; a plot's axis cannot be


def part(record: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return a part of a record, such as its ``cell``; empty if there is none."""
    found = record.get(name)
    return dict(found) if isinstance(found, Mapping) else {}


def as_number(value: Any) -> float | None:
    """Return a number as a float; None for all else: truth values, infinities, and what nobody can have measured."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        found = float(value)
    except OverflowError:  # JSON has integers of any length
        return None
    return found if math.isfinite(found) and abs(found) < _MOST else None


def number(values: Mapping[str, Any], name: str) -> float | None:
    """Return the number of that name; None if it is missing, no number or not finite."""
    return as_number(values.get(name))


def shorten(words: str, most: int) -> str:
    """Return the words in one line of at most ``most`` characters, without control characters."""
    if len(words) <= most and words.isprintable():
        return words  # nearly all are like that, and a report asks of millions
    line = " ".join("".join(c if c.isprintable() else " " for c in words[: 4 * most]).split())
    return line if len(line) <= most else line[: most - 1].rstrip() + "…"


def text(value: Any, most: int = 80) -> str:
    """Return a value as one line of at most ``most`` characters."""
    if isinstance(value, float) and not isinstance(value, bool):
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


def key(value: Any) -> str:
    """Return a string that is equal for equal values, to group by."""
    return json.dumps(value, sort_keys=True, default=str)


def status(record: Record) -> str:
    """Return how a run ended: ``ok``, or one of the ways in which it did not."""
    return text(record.get("status"), 30)


def is_sparse(record: Record) -> bool:
    """Is it a run of the sweep over update probabilities, whose runs of many lengths make one table?"""
    return record.get("experiment") == "sparse" and number(part(record, "cell"), "update_prob") is not None


def is_bench(record: Record) -> bool:
    """Is it a line of a benchmark?"""
    return str(record.get("experiment", "")).startswith("bench/")


#: Networks with a state, and the methods that only these have.
_RECURRENT_ARCHS = ("lstm", "gru", "rnn", "clocked")
_RECURRENT_METHODS = ("bptt", "dni_aux", "dni_ls", "dni_ls_aux")


def is_recurrent(record: Record) -> bool:
    """Is it a run of a network with a state: one that is unrolled, or several that tick at different rates?"""
    cell = part(record, "cell")
    named = cell.get("arch") in _RECURRENT_ARCHS or record.get("method") in _RECURRENT_METHODS
    return (named or number(cell, "unroll") is not None) and not is_bench(record)
