"""Runs of recurrent networks over the length of their unrolls: which of them one table gathers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from ..records import Record
from .fields import is_recurrent, key, number, part
from .labels import position, row_label
from .setting import setting_key, times_compare

__all__ = ["SEQUENCES", "TEXT", "Kind", "UnrollSweep", "gathered_runs", "unroll_of", "unroll_sweeps"]


@dataclass(frozen=True, slots=True)
class Kind:
    """What runs are measured by.

    Attributes:
        metric: the figure of a finished run.
        level: what is measured on the way, at points of the curve.
        data: of a point: how much was seen until then.
        things: what that counts.
        least: is less better?
        by_steps: is a budget a number of steps, whatever the length of the unrolls? Else it is one of data.
    """

    metric: str
    level: str
    data: str
    things: str
    least: bool
    by_steps: bool

    def best(self, values: Iterable[float]) -> float:
        """Return the best of some values."""
        return min(values) if self.least else max(values)

    def worst(self, values: Iterable[float]) -> float:
        """Return the worst of some values."""
        return max(values) if self.least else min(values)


#: Episodes that grow: a step is a batch of whole ones.
SEQUENCES = Kind(
    "sequence_length", "sequence_length", "sequences_seen", "sequences", least=False, by_steps=True
)
#: One text: a step is an unroll, so that longer ones make fewer steps of it.
TEXT = Kind("bits_per_char", "val_bits_per_char", "chars_seen", "characters", least=True, by_steps=False)


@dataclass(frozen=True, slots=True)
class UnrollSweep:
    """Runs that differ in method, length of the unrolls and seed only, with one budget.

    Attributes:
        records: the last of each run.
        kind: what they are measured by.
        unrolls: the lengths of the unrolls, ``T``, in order.
        rows: the methods with what is particular about them, the reference first.
    """

    records: tuple[Record, ...]
    kind: Kind
    unrolls: tuple[float, ...] = field(init=False)
    rows: tuple[str, ...] = field(init=False)
    _cells: dict[tuple[str, float], list[Record]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        cells: dict[tuple[str, float], list[Record]] = {}
        for record in sorted(self.records, key=position):
            if (unroll := unroll_of(record)) is not None:
                cells.setdefault((row_label(record), unroll), []).append(record)
        object.__setattr__(self, "_cells", cells)
        object.__setattr__(self, "rows", tuple(dict.fromkeys(row for row, _ in cells)))
        object.__setattr__(self, "unrolls", tuple(sorted({unroll for _, unroll in cells})))

    @property
    def timed(self) -> bool:
        """May the times of the runs be compared?"""
        return times_compare(self.records)

    def runs(self, row: str, unroll: float) -> list[Record]:
        """Return the runs of a row with unrolls of one length."""
        return self._cells.get((row, unroll), [])

    def of(self, unroll: float) -> UnrollSweep:
        """Return the runs with unrolls of one length."""
        return UnrollSweep(tuple(r for r in self.records if unroll_of(r) == unroll), self.kind)


def unroll_of(record: Record) -> float | None:
    """Return ``T``, the steps of an unroll; None for a network that is not unrolled."""
    return number(part(record, "cell"), "unroll")


def unroll_sweeps(records: Iterable[Record], *, least: int = 2) -> list[UnrollSweep]:
    """Return the sweeps among the records, one for each setting and budget that runs share.

    Args:
        records: of any experiments.
        least: how many lengths of unrolls a sweep must have.
    """
    sweeps: list[UnrollSweep] = []
    for group, kind in _groups(records, least):
        runs = {key([row_label(r), unroll_of(r), r.get("seed")]): r for r in group}
        sweeps.append(UnrollSweep(tuple(runs.values()), kind))
    return sweeps


def gathered_runs(records: Iterable[Record]) -> set[int]:
    """Return the identities (``id``) of the records that a sweep over several lengths gathers."""
    return {id(r) for group, _ in _groups(records, 2) for r in group}


def _groups(records: Iterable[Record], least: int) -> list[tuple[list[Record], Kind]]:
    settings: dict[str, list[Record]] = {}
    for record in records:
        if is_recurrent(record) and unroll_of(record) is not None:
            settings.setdefault(setting_key(record, but=("unroll",)), []).append(record)
    found: list[tuple[list[Record], Kind]] = []
    for group in settings.values():
        kind = _kind_of(group)
        found += [(runs, kind) for runs in _budgets(group, kind) if len(set(map(unroll_of, runs))) >= least]
    return found


def _kind_of(records: Sequence[Record]) -> Kind:
    for kind in (SEQUENCES, TEXT):
        if any(number(part(r, "metrics"), kind.metric) is not None for r in records):
            return kind
    # None of them ended well: the curve, or else the name, says what was tried.
    named = any(r.get("experiment") == "charlm" or "chars_seen" in _first_point(r) for r in records)
    return TEXT if named else SEQUENCES


def _first_point(record: Record) -> dict[str, object]:
    curve = record.get("curve")
    return curve[0] if isinstance(curve, list) and curve and isinstance(curve[0], dict) else {}


def _budgets(records: Sequence[Record], kind: Kind) -> list[list[Record]]:
    """Return the runs of each budget.

    A budget of data is met up to an unroll: runs share one if none falls short of the longest by an unroll.
    """
    groups: list[list[Record]] = []
    if kind.by_steps:
        named: dict[str, list[Record]] = {}
        for record in records:
            named.setdefault(key(record.get("steps")), []).append(record)
        return list(named.values())
    for record in sorted(records, key=_chars, reverse=True):
        if groups and _chars(groups[-1][0]) - _chars(record) < (unroll_of(record) or 0.0):
            groups[-1].append(record)
        else:
            groups.append([record])
    place = {id(r): k for k, r in enumerate(records)}
    return [sorted(group, key=lambda r: place[id(r)]) for group in groups]


def _chars(record: Record) -> float:
    """Return how many characters of its row of the text a run reads."""
    return (number(record, "steps") or 0.0) * (unroll_of(record) or 0.0)
