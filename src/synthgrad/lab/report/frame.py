"""Records as a frame: a row for each, with what tables group by and every figure as a column of numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from ..records import OddPart, Record
from ..records.parts import as_number
from .labels import (
    OF_METHOD,
    is_bench,
    is_language_model,
    is_recurrent,
    is_sparse,
    position,
    row_label,
    updates_of,
    windows_of,
)
from .words import key, text

__all__ = [
    "checked",
    "common_env",
    "figures",
    "first",
    "frame_of",
    "good",
    "groups",
    "latest",
    "num_bad",
    "reasons",
]
__all__ += ["records_of", "where"]

#: Settings of a configuration whose runs stand apart.
_APART = ("lr", "hold_out", "precision", "compiled", "augment", "symbols", "threshold_bits")
#: The same of language models, whose rows may have different learning rates.
_APART_LANGUAGE = ("cosine", "milestones", "precision", "most_valid")


def checked(records: Iterable[Mapping[str, Any]]) -> tuple[list[Record], list[str]]:
    """Return records that may be objects of lines as typed ones, and a line about each that is none."""
    found: list[Record] = []
    problems: list[str] = []
    for number, record in enumerate(records, 1):
        try:
            found.append(Record.of(record))
        except OddPart as odd:
            problems.append(f"record {number}: has no proper '{odd}', left out")
    return found, problems


def frame_of(records: Sequence[Record]) -> pd.DataFrame:
    """Return records as a frame.

    Columns: ``record``; ``kind`` (``bench``, ``sparse``, ``recurrent``, ``language`` or ``training``); ``label`` and
    ``place`` of the row that it stands in; ``method``, ``seed``, ``status``, ``ok``, ``steps`` (of language models,
    updates), ``unroll``, ``prob``; ``setting``, what runs must share to stand side by side, whatever their number of
    steps; ``apart``, the same whatever their unrolls; and ``metrics.…``, ``time.…``, ``estimate.…``, numbers or NaN.
    """
    made = pd.DataFrame({"record": pd.Series(list(records), dtype=object)})
    texts: dict[str, Callable[[Record], str]] = {
        "kind": _kind,
        "label": lambda r: row_label(r, rate=True),
        "method": lambda r: text(r.method, 40),
        "seed": lambda r: text(r.seed, 40),
        "status": lambda r: text(r.status, 30),
        "setting": _setting,
        "apart": lambda r: _setting(r, "unroll"),
    }
    for name, of in texts.items():
        made[name] = pd.Series([of(r) for r in records], dtype=object)
    made["place"] = [position(r.method) for r in records]
    made["ok"] = made["status"] == "ok"
    steps = [updates_of(r) if is_language_model(r) else as_number(r.steps) for r in records]
    made["steps"] = pd.Series(steps, dtype=float)
    made["unroll"] = pd.Series([r.cell.unroll for r in records], dtype=float)
    made["prob"] = pd.Series([r.cell.update_prob for r in records], dtype=float)
    numbers = [_numbers(r) for r in records]
    found = made.join(pd.DataFrame(numbers, index=made.index, dtype=float)) if any(numbers) else made
    return found.copy()  # in one piece: columns that were added one by one are slow to select from


def _kind(record: Record) -> str:
    if is_bench(record):
        return "bench"
    if is_language_model(record):
        return "language"
    return "sparse" if is_sparse(record) else "recurrent" if is_recurrent(record) else "training"


def _setting(record: Record, *but: str) -> str:
    cell, config = record.cell.without(*OF_METHOD, *but), record.config
    if is_language_model(record):
        # Updates of as many windows may be compared, however many batches they are made of.
        warm_up = (config.number("lr_warm_up") or 0.0) / (config.number("accumulate") or 1.0)
        shared = [record.experiment, record.tier, windows_of(record), warm_up]
        return key([shared, cell, [config.get(name) for name in _APART_LANGUAGE], record.env.device])
    shared = [record.experiment, record.tier, record.batch_size]
    return key([shared, cell, [config.get(name) for name in _APART], record.env.device])


def _numbers(record: Record) -> dict[str, float | None]:
    parts = {"metrics": record.metrics, "time": record.time, "estimate": record.estimate or {}}
    return {f"{part}.{name}": values.number(name) for part, values in parts.items() for name in values}  # type: ignore[union-attr]


def groups(frame: pd.DataFrame, *by: str) -> list[tuple[Any, pd.DataFrame]]:
    """Return the groups that share some columns, in the order in which they come; NaN is a value like others."""
    names: Any = list(by) if len(by) > 1 else next(iter(by))
    return list(frame.groupby(names, sort=False, dropna=False)) if len(frame) else []


def latest(frame: pd.DataFrame, *by: str) -> pd.DataFrame:
    """Return one row for each value of some columns, the last: of a run that was recorded twice, that counts."""
    return frame.drop_duplicates(list(by), keep="last")


def records_of(frame: pd.DataFrame) -> list[Record]:
    """Return the records of some rows."""
    return list(frame["record"])


def first(frame: pd.DataFrame) -> Record:
    """Return the first record, for what all rows share."""
    return records_of(frame.head(1))[0]


def where(frame: pd.DataFrame, flags: Iterable[bool]) -> pd.DataFrame:
    """Return the rows whose flag is set, of none none."""
    return frame.loc[pd.Series(list(flags), index=frame.index, dtype=bool)]


def figures(frame: pd.DataFrame, name: str) -> list[float]:
    """Return the numbers of a column, such as ``metrics.test_error_pct``; none if no record has it."""
    return [] if name not in frame else [float(value) for value in frame[name].dropna()]


def good(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the runs that ended well."""
    return frame[frame["ok"]]


def num_bad(frame: pd.DataFrame) -> int:
    """Return how many runs failed or diverged."""
    return int((~frame["ok"]).sum())


def reasons(frame: pd.DataFrame, most: int = 200) -> list[str]:
    """Return a line for each reason why runs did not end well."""
    bad = frame[~frame["ok"]]
    return list(dict.fromkeys(f"{r.status}: {text(r.error, most)}" for r in records_of(bad)))


def common_env(frame: pd.DataFrame) -> bool:
    """May the times of these runs be compared? Their errors may be, whatever their threads and neighbours."""
    return len({(r.env.threads, r.env.jobs or 1) for r in records_of(frame)}) == 1
