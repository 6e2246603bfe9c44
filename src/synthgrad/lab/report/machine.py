"""On what machine and with which settings runs were made, and where the runs of one table differ in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from ..records import Record
from .labels import OF_METHOD, row_label
from .words import key, text

__all__ = ["differences", "machine_line", "settings"]

#: Differences between runs that are no surprise, or are said elsewhere (the library of a network, in its row).
_EXPECTED = frozenset({"date", "started", "finished", "dirty", "library_version", "rule", "other_load"})
_MOST, _FEW, _SHOWN = 40, 500, 4  # settings; runs that are looked at; values that are listed


def machine_line(records: Sequence[Record]) -> str:
    """Return processor, threads, PyTorch, commit and date of some runs in one line."""
    words = {"device": "{}", "threads": "{} threads", "jobs": "{} runs side by side", "torch": "torch {}"}
    words |= {"synthgrad": "synthgrad {}", "commit": "commit {}", "date": "{}", "started": "{}"}
    parts: list[str] = []
    for name, said in words.items():
        found = sorted({text(v, 60) for r in records if (v := r.env.get(name, r.more.get(name))) is not None})
        found = [v for v in found if (name, v) != ("jobs", "1")]
        if found:
            listed = " or ".join(found[:3]) + (" …" if len(found) > 3 else "")
            parts.append(said.replace("threads", "thread" if found == ["1"] else "threads").format(listed))
    return " · ".join(parts)


def differences(records: Sequence[Record], expected: Sequence[str] = ()) -> list[str]:
    """Return a line for each setting of machine or training that the runs of one table do not share."""
    lines: list[str] = []
    for words, parts in (("Machine", [r.env for r in records]), ("Settings", [r.config for r in records])):
        frame = _columns(parts)
        names = [n for n in frame if n not in _EXPECTED and n not in expected][:_MOST]
        for name in names:
            if frame[name].nunique() > 1:
                rows = pd.Series([row_label(r) for r in records]).groupby(frame[name], sort=False).unique()
                values = {
                    value: parts[list(frame[name]).index(value)].get(name) for value in rows.index[:_SHOWN]
                }
                said = ["none" if v is None else text(v, 60) for v in values.values()]
                listed = [f"{v} ({text(list(rows[k]), 90)})" for k, v in zip(values, said, strict=True)]
                listed += [f"{len(rows) - _SHOWN} more"] if len(rows) > _SHOWN else []
                lines.append(f"{words}: runs of this table differ in {text(name, 40)}: {'; '.join(listed)}.")
    return lines


def _columns(parts: Sequence[Mapping[str, Any]]) -> dict[str, pd.Series[str]]:
    """Return a column for each key, with values that compare as texts; null where there is none."""
    names = dict.fromkeys(name for part in parts for name in part)
    return {name: pd.Series([key(part.get(name)) for part in parts]) for name in names}


def settings(records: Sequence[Record]) -> list[tuple[str, str]]:
    """Return names and values of all settings of a table's runs, those of each method's rule, and the machine.

    What the runs do not share is said to vary; a table of many runs is judged by its first ones.
    """
    few = records[:_FEW]
    whole = [{"tier": r.tier, "steps": r.steps, "batch_size": r.batch_size} for r in few]
    shared = {
        name: text(parts[0].get(name), 300) if column.nunique() == 1 else "varies"
        for parts in (
            whole,
            [r.cell.without(*OF_METHOD) for r in few],
            [r.config.without("rule") for r in few],
        )
        for name, column in _columns(parts).items()
    }
    seeds = sorted({text(r.seed, 20) for r in records}, key=lambda seed: (len(seed), seed))
    rules = {row_label(r): _of_method(r) for r in few if r.method != "backprop"}
    machine = [r.env for r in few]
    listed = [*shared.items(), ("seeds", ", ".join(seeds))]
    listed += [(f"rule of {label}", text(found, 300)) for label, found in rules.items() if found][:_MOST]
    for name, column in _columns(machine).items():
        listed.append((str(name), text(machine[0].get(name), 300) if column.nunique() == 1 else "varies"))
    return [(text(name, 60), text(value, 300)) for name, value in listed[: 4 * _MOST]]


def _of_method(record: Record) -> dict[str, Any]:
    """Return the settings of a method: of its rule and of how its modules run."""
    cell = {name: record.cell[name] for name in OF_METHOD if record.cell.get(name) not in ([], None)}
    return {**record.config.rule, **cell}
