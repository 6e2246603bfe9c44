"""From records to the rows of a table: medians and spreads over seeds, ratios, and causes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import mean, median
from typing import Any

from ..records import Record
from . import published
from .fields import is_bench, is_sparse, key, number, part, status, text
from .labels import OF_METHOD, position, row_label, title_of

__all__ = ["Row", "Table", "cause_of", "setting_key", "tabulate"]

#: Measures of recurrent networks, in a table that has them.
_RECURRENT = ("bits_per_char", "sequence_length")


@dataclass(frozen=True, slots=True)
class Row:
    """One method in one table; None where there is nothing to say.

    Attributes:
        method: name.
        num_ok, num_bad: runs that ended well, and that failed or diverged.
        errors_pct: error of each run that ended well: test error, or validation error if `Table.part` says.
        published_pct: test error that was published for this method and this network.
        bits_per_char, sequence_length: what recurrent runs are measured by, of each that ended well.
        step_ms: median over runs of the median time of a step.
        ratio: that over backpropagation's, of the same seeds where possible.
        estimate: ratio of a step's arithmetic to backpropagation's, as estimated before the run.
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
    published_pct: float | None
    bits_per_char: tuple[float, ...]
    sequence_length: tuple[float, ...]
    step_ms: float | None
    ratio: float | None
    estimate: float | None
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
        timed: may the times of its runs be compared?
        rows: one for each method, backpropagation first.
        records: what the rows were made of.
    """

    title: str
    part: str
    target_error_pct: float | None
    timed: bool
    rows: tuple[Row, ...]
    records: tuple[Record, ...]


def tabulate(records: Iterable[Record]) -> list[Table]:
    """Group training records into tables. Of a run that was recorded twice, the last counts.

    Those of the sweep over update probabilities make a table of their own kind.
    """
    groups: dict[str, dict[str, Record]] = {}
    for record in records:
        if is_bench(record) or is_sparse(record):
            continue
        table = groups.setdefault(key([setting_key(record), record.get("steps")]), {})
        table[key([row_label(record), record.get("seed")])] = record
    return [_table(list(group.values())) for group in groups.values()]


def setting_key(record: Record) -> str:
    """Return what runs must share to stand side by side, whatever their number of steps, as a string."""
    cell = {k: v for k, v in part(record, "cell").items() if k not in OF_METHOD}
    config, env = part(record, "config"), part(record, "env")
    shared = [record.get(k) for k in ("experiment", "tier", "batch_size")]
    apart = [config.get(k) for k in ("lr", "hold_out", "precision", "compiled", "augment")]
    return key([shared, cell, apart, env.get("device")])


def _table(records: Sequence[Record]) -> Table:
    config = part(records[0], "config")
    groups: dict[str, list[Record]] = {}
    for record in sorted(records, key=position):
        groups.setdefault(row_label(record), []).append(record)
    reference = [r for r in groups.get("backprop", []) if r.get("status") == "ok"]
    # Errors of runs with more threads or neighbours may be compared, their times may not.
    envs = [part(r, "env") for r in records]
    timed = len({key([e.get("threads"), e.get("jobs", 1)]) for e in envs}) == 1
    measured = "val" if config.get("hold_out") else "test"
    rows = tuple(_row(label, group, measured, reference, timed=timed) for label, group in groups.items())
    target = number(config, "target_error_pct")
    return Table(title_of(records[0]), measured, target, timed, rows, tuple(records))


def _numbers(records: Iterable[Record], section: str, name: str) -> tuple[float, ...]:
    found = (number(part(r, section), name) for r in records)
    return tuple(value for value in found if value is not None)


def _median(values: Sequence[float]) -> float | None:
    return median(values) if values else None


def _step_ms(records: Sequence[Record]) -> float | None:
    return _median(_numbers(records, "time", "step_ms_median"))


def _ratio(records: Sequence[Record], reference: Sequence[Record]) -> float | None:
    """Return the ratio of step times: over the seeds that both have, or over all if they share none."""
    common = {key(r.get("seed")) for r in records} & {key(r.get("seed")) for r in reference}
    own, theirs = (
        _step_ms([r for r in group if not common or key(r.get("seed")) in common])
        for group in (records, reference)
    )
    return own / theirs if own is not None and theirs else None


def _published(record: Record, measured: str) -> float | None:
    """Return the published test error: only of what the paper trained, every update made, all layers cut."""
    cell = part(record, "cell")
    if measured != "test" or number(cell, "update_prob") not in (None, 1) or cell.get("at"):
        return None
    return published.errors_pct(cell).get(str(record.get("method")))


def _row(
    label: str, records: Sequence[Record], measured: str, reference: Sequence[Record], *, timed: bool
) -> Row:
    good = [r for r in records if r.get("status") == "ok"]
    bad = [r for r in records if r.get("status") != "ok"]
    times = _numbers(good, "metrics", "time_to_target_s") if timed else ()
    skipped = _numbers(good, "metrics", "updates_skipped_share")
    ratio = _ratio(good, reference) if timed else None
    share = mean(skipped) if skipped else None
    estimate = _median(_numbers(records, "estimate", "ratio_to_backprop"))
    recurrent: dict[str, Any] = {name: _numbers(good, "metrics", name) for name in _RECURRENT}
    return Row(
        method=label,
        num_ok=len(good),
        num_bad=len(bad),
        errors_pct=_numbers(good, "metrics", f"{measured}_error_pct"),
        published_pct=_published(records[0], measured),
        step_ms=_step_ms(good) if timed else None,
        ratio=ratio,
        estimate=estimate,
        time_s=_median(times),
        num_reached=len(times),
        skipped_share=share,
        cause=cause_of(ratio, share, estimate),
        note="; ".join(sorted({f"{status(r)}: {text(r.get('error'), 400)}" for r in bad})[:10]),
        **recurrent,
    )


def cause_of(ratio: float | None, skipped_share: float | None, estimate: float | None = None) -> str:
    """Say why a step is faster than backpropagation's, where it is by more than noise.

    A step that leaves out updates does less work; that is no gain of decoupling, and is said apart. A step
    with more arithmetic than backpropagation's that took less time on one machine was not measured fairly,
    or not long enough.
    """
    if ratio is None or ratio > 0.97:
        return ""
    if skipped_share:
        return f"{100 * skipped_share:.0f} % of updates skipped"
    return "more work, faster: measure again" if (estimate or 0) > 1.03 else "equal work, faster"
