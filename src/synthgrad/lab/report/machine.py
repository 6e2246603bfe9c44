"""On what machine and with which settings runs were made, and where the runs of one table differ in it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..records import Record
from .fields import key, part, text
from .labels import OF_METHOD, row_label, rule_settings

__all__ = ["differences", "machine_line", "settings"]

#: Differences between runs that are no surprise, or are said elsewhere (the library of a network, in its row).
_EXPECTED = frozenset({"date", "started", "finished", "dirty", "library_version"})
_MOST = 40  # settings, and rules
_FEW = 500  # runs that are looked at for settings


def machine_line(records: Sequence[Record]) -> str:
    """Return processor, threads, PyTorch, commit and date of some runs in one line."""
    envs = [part(r, "env") for r in records]
    parts = [_values(envs, "device", "{}"), _values(envs, "threads", "{} thread(s)")]
    jobs = {e.get("jobs", 1) for e in envs if isinstance(e.get("jobs", 1), int)} - {1}
    parts += [f"{text(sorted(jobs), 20)} runs side by side"] if jobs else []
    parts += [_values(envs, "torch", "torch {}"), _values(envs, "synthgrad", "synthgrad {}")]
    parts += [_values(envs, "commit", "commit {}")]
    parts += [_values([*envs, *records], name, "{}") for name in ("date", "started")]
    return " · ".join(p for p in parts if p)


def _values(envs: Sequence[Mapping[str, Any]], name: str, words: str) -> str:
    found = sorted({text(e[name], 60) for e in envs if e.get(name) is not None})
    if not found:
        return ""
    said = words.format(" or ".join(found[:3]) + (" …" if len(found) > 3 else ""))
    return said.replace("(s)", "" if found == ["1"] else "s")


def differences(records: Sequence[Record]) -> list[str]:
    """Return a line for each setting of machine or training that the runs of one table do not share."""
    lines: list[str] = []
    for section, words in (("env", "Machine"), ("config", "Settings")):
        names = dict.fromkeys(name for r in records for name in part(r, section))
        for name in [n for n in names if n not in _EXPECTED and n != "rule"][:_MOST]:
            values = _by_value(records, lambda r, s=section, n=name: part(r, s).get(n))
            if len(values) > 1:
                listed = "; ".join(
                    f"{value} ({text(rows, 90)})" for value, rows in list(values.items())[:_SHOWN]
                )
                more = f"; {len(values) - _SHOWN} more" if len(values) > _SHOWN else ""
                lines.append(f"{words}: runs of this table differ in {text(name, 40)}: {listed}{more}.")
    return lines


_LOOKED_AT = 100  # runs whose rows are named
_SHOWN = 4  # different values of a setting that are listed


def _by_value(records: Sequence[Record], value_of: Callable[[Record], Any]) -> dict[str, list[str]]:
    """Return the values as text with the rows that have them."""
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(key(value_of(record)), []).append(record)
    if len(groups) < 2:
        return {}
    shown = [(value_of(group[0]), group) for group in groups.values()]
    return {
        "none" if value is None else text(value, 60): list(dict.fromkeys(map(row_label, group[:_LOOKED_AT])))
        for value, group in shown
    }


def settings(records: Sequence[Record]) -> list[tuple[str, str]]:
    """Return names and values of all settings of a table's runs, those of each method's rule, and the machine.

    What the runs do not share is said to vary; a table of many runs is judged by its first ones.
    """
    few = records[:_FEW]
    seeds = sorted({text(r.get("seed"), 20) for r in records}, key=lambda s: (len(s), s))
    shared = {name: _shared(few, lambda r, n=name: r.get(n)) for name in ("tier", "steps", "batch_size")}
    for section, left_out in (("cell", OF_METHOD), ("config", ("rule",))):
        names = dict.fromkeys(name for r in few for name in part(r, section) if name not in left_out)
        shared |= {n: _shared(few, lambda r, s=section, n=n: part(r, s).get(n)) for n in names}
    listed = [*shared.items(), ("seeds", ", ".join(seeds))]
    rules = {row_label(r): _of_method(r) for r in few}
    listed += [(f"rule of {label}", text(found, 300)) for label, found in rules.items() if found][:_MOST]
    names = dict.fromkeys(name for r in few for name in part(r, "env"))
    listed += [(n, _shared(few, lambda r, n=n: part(r, "env").get(n))) for n in names]
    return [(text(name, 60), text(value, 300)) for name, value in listed[: 4 * _MOST]]


def _shared(records: Sequence[Record], value_of: Callable[[Record], Any]) -> str:
    values = {key(value_of(r)) for r in records}
    return text(value_of(records[0]), 300) if len(values) == 1 else "varies"


def _of_method(record: Record) -> dict[str, Any]:
    """Return the settings of a method: of its rule and of how its modules run; backpropagation has none."""
    if record.get("method") == "backprop":
        return {}
    cell = {k: v for k, v in part(record, "cell").items() if k in OF_METHOD and v not in ([], None)}
    return {**rule_settings(record), **cell}
