"""From records to the rows of a table: medians and spreads over seeds, ratios, and causes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import mean, median

from ..records import Record
from . import published
from .fields import is_bench, is_recurrent, is_sparse, key, number, part, status, text
from .labels import position, row_label, title_of
from .measures import MEASURES, values_of
from .setting import setting_key, times_compare
from .unrolls import gathered_runs

__all__ = ["Row", "Table", "cause_of", "ratio_of", "step_ms_of", "tabulate"]


@dataclass(frozen=True, slots=True)
class Row:
    """One method in one table; None where there is nothing to say.

    Attributes:
        method: name.
        num_ok, num_bad: runs that ended well, and that failed or diverged.
        errors_pct: error of each run that ended well: test error, or validation error if `Table.part` says.
        published_pct: test error that was published for this method and this network.
        step_ms: median over runs of the median time of a step.
        ratio: that over the reference's, of the same seeds where possible.
        estimate: ratio of a step's arithmetic to backpropagation's, as estimated before the run.
        time_s: median time to the target error, of the runs that reached it.
        num_reached: how many did.
        skipped_share: share of module updates that were skipped.
        cause: why it is faster, where it is.
        note: what went wrong.
        measures: what recurrent runs are measured by, of each that ended well, by the name of the metric.
        figure: what was published of a recurrent network.
    """

    method: str
    num_ok: int
    num_bad: int
    errors_pct: tuple[float, ...]
    published_pct: float | None
    step_ms: float | None
    ratio: float | None
    estimate: float | None
    time_s: float | None
    num_reached: int
    skipped_share: float | None
    cause: str
    note: str
    measures: Mapping[str, tuple[float, ...]] = field(default_factory=dict[str, tuple[float, ...]])
    figure: published.Figure | None = None

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
        rows: one for each method, the reference first.
        records: what the rows were made of.
        reference: the method that step times are held against.
        recurrent: are they runs of recurrent networks?
    """

    title: str
    part: str
    target_error_pct: float | None
    timed: bool
    rows: tuple[Row, ...]
    records: tuple[Record, ...]
    reference: str = "backprop"
    recurrent: bool = False


def tabulate(records: Iterable[Record]) -> list[Table]:
    """Group training records into tables. Of a run that was recorded twice, the last counts.

    Those of the sweep over update probabilities, and recurrent ones that differ in the length of their unrolls,
    make tables of their own kind.
    """
    groups: dict[str, dict[str, Record]] = {}
    records = list(records)
    elsewhere = gathered_runs(records)
    for record in records:
        if is_bench(record) or is_sparse(record) or id(record) in elsewhere:
            continue
        table = groups.setdefault(key([setting_key(record), record.get("steps")]), {})
        table[key([row_label(record), record.get("seed")])] = record
    return [_table(list(group.values())) for group in groups.values()]


def _table(records: Sequence[Record]) -> Table:
    config = part(records[0], "config")
    groups: dict[str, list[Record]] = {}
    for record in sorted(records, key=position):
        groups.setdefault(row_label(record), []).append(record)
    recurrent = is_recurrent(records[0])
    name = "bptt" if recurrent else "backprop"
    reference = [r for r in groups.get(name, []) if r.get("status") == "ok"]
    timed = times_compare(records)
    measured = "val" if config.get("hold_out") else "test"
    rows = tuple(_row(label, group, measured, reference, timed=timed) for label, group in groups.items())
    target = number(config, "target_error_pct")
    return Table(title_of(records[0]), measured, target, timed, rows, tuple(records), name, recurrent)


def _numbers(records: Iterable[Record], section: str, name: str) -> tuple[float, ...]:
    found = (number(part(r, section), name) for r in records)
    return tuple(value for value in found if value is not None)


def _median(values: Sequence[float]) -> float | None:
    return median(values) if values else None


def step_ms_of(records: Sequence[Record]) -> float | None:
    """Return the median over runs of the median time of a step; None if there is none."""
    return _median(_numbers(records, "time", "step_ms_median"))


def ratio_of(records: Sequence[Record], reference: Sequence[Record]) -> float | None:
    """Return the ratio of step times: over the seeds that both have, or over all if they share none."""
    common = {key(r.get("seed")) for r in records} & {key(r.get("seed")) for r in reference}
    own, theirs = (
        step_ms_of([r for r in group if not common or key(r.get("seed")) in common])
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
    ratio = ratio_of(good, reference) if timed else None
    shown = [m.metric for m in MEASURES if timed or not m.timed]
    share = mean(skipped) if skipped else None
    estimate = _median(_numbers(records, "estimate", "ratio_to_backprop"))
    return Row(
        method=label,
        num_ok=len(good),
        num_bad=len(bad),
        errors_pct=_numbers(good, "metrics", f"{measured}_error_pct"),
        published_pct=_published(records[0], measured),
        step_ms=step_ms_of(good) if timed else None,
        ratio=ratio,
        estimate=estimate,
        time_s=_median(times),
        num_reached=len(times),
        skipped_share=share,
        cause=""
        if is_recurrent(records[0])
        else cause_of(ratio, share, estimate),  # its updates may differ in number
        note="; ".join(sorted({f"{status(r)}: {text(r.get('error'), 400)}" for r in bad})[:10]),
        measures={metric: values for metric in shown if (values := values_of(good, metric))},
        figure=published.recurrent_figure(part(records[0], "cell"), records[0].get("method")),
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
