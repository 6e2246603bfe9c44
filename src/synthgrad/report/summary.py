"""From records to the rows of a table: medians and spreads over seeds, ratios, and causes."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import mean, median
from typing import Any

from ..records import Record
from ..records.names import METHODS

__all__ = ["ORDER", "Row", "Table", "cause_of", "row_label", "tabulate"]

#: Methods that come first, in this order; others follow as they were recorded.
ORDER = tuple(METHODS)

#: Settings of a cell that methods of one table may differ in: they belong to the method.
_OF_METHOD = ("update_prob", "engine", "at")


@dataclass(frozen=True, slots=True)
class Row:
    """One method in one table; None where there is nothing to say.

    Attributes:
        method: name.
        num_ok, num_bad: runs that ended well, and that failed or diverged.
        errors_pct: error of each run that ended well: test error, or validation error if `Table.part` says.
        step_ms: median over runs of the median time of a step.
        ratio: that over backpropagation's, of the same seeds where possible.
        time_s: median time to the target error, of the runs that reached it.
        num_reached: how many did.
        skipped_share: share of module updates that were skipped.
        cause: why it is faster, where it is.
        note: what went wrong.
    """

    method: str
    num_ok: int
    num_bad: int
    errors_pct: tuple[float, ...]
    step_ms: float | None
    ratio: float | None
    time_s: float | None
    num_reached: int
    skipped_share: float | None
    cause: str
    note: str

    @property
    def error_pct(self) -> float | None:
        """Mean error over the runs that ended well."""
        return mean(self.errors_pct) if self.errors_pct else None

    @property
    def spread_pct(self) -> float | None:
        """Half the distance between the best and the worst run; None for one run."""
        return (max(self.errors_pct) - min(self.errors_pct)) / 2 if len(self.errors_pct) > 1 else None


@dataclass(frozen=True, slots=True)
class Table:
    """Runs that may be compared: same experiment, tier, cell, steps and batch size.

    Attributes:
        title: what is trained on what.
        part: ``test`` or ``val``: where the error was measured.
        target_error_pct: the error that is timed.
        rows: one for each method, backpropagation first.
        records: what the rows were made of.
    """

    title: str
    part: str
    target_error_pct: float | None
    rows: tuple[Row, ...]
    records: tuple[Record, ...]


def tabulate(records: Iterable[Record]) -> list[Table]:
    """Group training records into tables. Of a run that was recorded twice, the last counts."""
    groups: dict[str, dict[str, Record]] = {}
    for record in records:
        if str(record.get("experiment", "")).startswith("bench/"):
            continue
        table = groups.setdefault(_table_key(record), {})
        table[json.dumps([row_label(record), record.get("seed")])] = record
    return [_table(list(group.values())) for group in groups.values()]


def _table_key(record: Record) -> str:
    cell = {k: v for k, v in (record.get("cell") or {}).items() if k not in _OF_METHOD}
    config, env = record.get("config") or {}, record.get("env") or {}
    shared = [record.get(k) for k in ("experiment", "tier", "steps", "batch_size")]
    return json.dumps(
        [shared, cell, config.get("lr"), config.get("hold_out"), env.get("device")], sort_keys=True
    )


def _position(record: Record) -> int:
    method = record.get("method")
    return ORDER.index(method) if method in ORDER else len(ORDER)


def row_label(record: Record) -> str:
    """Name of a row: the method, and what is particular about it."""
    cell, rule = record.get("cell") or {}, (record.get("config") or {}).get("rule") or {}
    label = str(record.get("method"))
    parts: list[str] = []
    if (prob := cell.get("update_prob", 1)) != 1:
        parts.append(f"p={prob:g}")
    if cell.get("engine") == "plain" and label != "backprop":
        parts.append("plain loop")
    if cell.get("at"):
        parts.append("cut after " + ", ".join(cell["at"]))
    about = _rule_label(rule)
    if record.get("experiment") == "dni_search" or about != "linear":
        parts.append(about)
    return f"{label} ({', '.join(parts)})" if parts else label


def _rule_label(rule: dict[str, Any]) -> str:
    hidden = "×".join(str(n) for n in rule.get("hidden") or ())
    words = ["like its layer" if rule.get("like_layer") else f"hidden {hidden}" if hidden else "linear"]
    words += [] if rule.get("norm", True) else ["no norm"]
    words += [f"lr ×{rule['lr_factor']:g}"] if rule.get("lr_factor", 1) != 1 else []
    words += ["not decayed"] if rule.get("constant_lr") else []
    words += [] if rule.get("per_example", True) else ["mean-reduced units"]
    return ", ".join(words)


def _table(records: Sequence[Record]) -> Table:
    first = records[0]
    cell, config = first.get("cell") or {}, first.get("config") or {}
    part = "val" if config.get("hold_out") else "test"
    groups: dict[str, list[Record]] = {}
    for record in sorted(records, key=_position):
        groups.setdefault(row_label(record), []).append(record)
    reference = [r for r in groups.get("backprop", []) if r.get("status") == "ok"]
    # Errors of runs with more threads or neighbours may be compared, their times may not.
    envs = [r.get("env") or {} for r in records]
    timed = len({(e.get("threads"), e.get("jobs", 1)) for e in envs}) == 1
    rows = tuple(_row(label, group, part, reference, timed=timed) for label, group in groups.items())
    return Table(_title(first, cell), part, config.get("target_error_pct"), rows, tuple(records))


def _title(record: Record, cell: dict[str, Any]) -> str:
    size = f"{cell.get('layers')} layers × {cell.get('width')}" if cell.get("layers") else ""
    words = [str(record.get("experiment")), str(record.get("tier")), str(cell.get("data"))]
    words += [
        f"{cell.get('arch')} {size}".strip(),
        f"{record.get('steps')} steps of {record.get('batch_size')}",
    ]
    return " · ".join(words)


def _step_ms(records: Sequence[Record]) -> float | None:
    times = [t for r in records if (t := (r.get("time") or {}).get("step_ms_median")) is not None]
    return median(times) if times else None


def _ratio(records: Sequence[Record], reference: Sequence[Record]) -> float | None:
    """Return the ratio of step times: over the seeds that both have, or over all if they share none."""
    common = {r.get("seed") for r in records} & {r.get("seed") for r in reference}
    own, theirs = (
        _step_ms([r for r in group if not common or r.get("seed") in common])
        for group in (records, reference)
    )
    return own / theirs if own is not None and theirs else None


def _row(
    label: str, records: Sequence[Record], part: str, reference: Sequence[Record], *, timed: bool
) -> Row:
    good = [r for r in records if r.get("status") == "ok"]
    bad = [r for r in records if r.get("status") != "ok"]
    metrics = [r.get("metrics") or {} for r in good]
    errors = tuple(m[f"{part}_error_pct"] for m in metrics if m.get(f"{part}_error_pct") is not None)
    times = [m["time_to_target_s"] for m in metrics if timed and m.get("time_to_target_s") is not None]
    skipped = [m["updates_skipped_share"] for m in metrics if m.get("updates_skipped_share") is not None]
    step_ms = _step_ms(good) if timed else None
    ratio = _ratio(good, reference) if timed else None
    share = mean(skipped) if skipped else None
    return Row(
        method=label,
        num_ok=len(good),
        num_bad=len(bad),
        errors_pct=errors,
        step_ms=step_ms,
        ratio=ratio,
        time_s=median(times) if times else None,
        num_reached=len(times),
        skipped_share=share,
        cause=cause_of(ratio, share),
        note="; ".join(sorted({f"{r.get('status')}: {r.get('error')}" for r in bad})),
    )


def cause_of(ratio: float | None, skipped_share: float | None) -> str:
    """Say why a step is faster than backpropagation's, where it is by more than noise.

    A step that leaves out updates does less work; that is no gain of decoupling, and is said apart.
    """
    if ratio is None or ratio > 0.97:
        return ""
    if skipped_share:
        return f"{100 * skipped_share:.0f} % of updates skipped"
    return "equal work, faster"
