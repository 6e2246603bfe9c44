"""The tables of benchmarks, each declared by its columns."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import pandas as pd

from ..records import Record
from .absence import absence_sheet
from .chaos import chaos_sheet
from .frame import figures, groups
from .labels import is_bench
from .measures import is_unsteady, ratio_text
from .networks import networks_sheet
from .plans import plan_sheet
from .sheet import Column, Sheet, sheet_of
from .words import DASH, TEXTS, heading_of, text, unit

__all__ = ["bench_groups", "bench_label", "bench_sheet", "without_rivals"]

_MOST = 24  # columns of parameters, and of metrics, of a benchmark that nothing is known of

#: Benchmarks whose rules are all in the in-process engine, which goes without saying.
_IN_PROCESS = ("bench/gpt",)

#: Peers of `bench pipeline` that send nothing: what their cell says of a link does not concern them.
_WITHOUT_LINK = ("backprop", "backprop_all_threads", "backprop_microbatches", "independent")

BenchColumn = Column[Record]


def bench_groups(records: Iterable[Record]) -> dict[str, list[Record]]:
    """Return the lines of every benchmark among the records, by its name without ``bench/``."""
    found: dict[str, list[Record]] = {}
    for record in records:
        if is_bench(record):
            name = text(record.experiment.removeprefix("bench/"), 40)
            # Episodes and single steps have other columns.
            name += " of unrolls" if name == "memory" and "horizon" in record.cell else ""
            name += f" of {text(record.cell.get('what'), 20)}" if name == "plan" else ""
            found.setdefault(name, []).append(record)
    return found


def without_rivals(name: str, records: Sequence[Record]) -> list[Record]:
    """Return the lines of a benchmark without those of schedules that were faster with other microbatches."""
    return [r for r in records if name != "pipeline" or r.metrics.is_best is not False]


def bench_label(record: Record, *, with_rule: bool = True) -> str:
    """Name of a row: the method, its rule and engine, and what is skipped; not whether it is compiled."""
    cell, method, rule = record.cell, text(record.method, 40), record.config.rule_text
    usual = cell.engine == "in-process" and record.experiment in _IN_PROCESS
    words = [
        TEXTS["peers"].get(method, method),
        text(rule, 60) if with_rule and method not in ("backprop", "no_bprop") else "",
        "" if usual else text(cell.engine or "", 40),
        text(cell.variant or "", 40),
        f"p={cell.update_prob:g}" if cell.update_prob not in (None, 1) else "",
        f"{100 * cell.observe_prob:g} % of messages" if cell.observe_prob not in (None, 1) else "",
    ]
    return ", ".join(word for word in words if word)


# Columns


def _key(
    heading: str, cell: Callable[[Record], str], *, optional: bool = False, partly: str = ""
) -> BenchColumn:
    return Column(heading, cell, key=True, optional=optional, partly=partly)


def _figure(heading: str, metric: str, *, late: bool = False, optional: bool = False) -> BenchColumn:
    def cell(record: Record) -> str:
        return unit(metric, record.metrics.number(metric))

    return Column(heading, cell, late=late, optional=optional)


def _ratio(heading: str, metric: str) -> list[BenchColumn]:
    """Return a ratio, marked where it is unsteady, and the column of its spread."""

    def cell(record: Record) -> str:
        ratio, low, high = _spread(record, metric)
        return ratio_text(ratio, unsteady=is_unsteady(ratio, low, high, [record]))

    def spread(record: Record) -> str:
        _, low, high = _spread(record, metric)
        return DASH if low is None or high is None else f"{low:.2f}–{high:.2f}"

    return [Column(heading, cell), Column("10–90 %", spread)]


def _ratio_of_steps(metric: str, *, late: bool = False) -> BenchColumn:
    """Return a ratio of medians, marked where the times of the steps scatter."""

    def cell(record: Record) -> str:
        metrics = record.metrics
        ratio, median = metrics.number(metric), metrics.step_ms_median
        _, *ends = _spread(record, metric)
        low, high = (
            ends
            if None not in ends
            else (
                None if ratio is None or not median or time is None else ratio * time / median
                for time in (metrics.step_ms_p10, metrics.step_ms_p90)
            )
        )
        return ratio_text(ratio, unsteady=is_unsteady(ratio, low, high, [record]))

    return Column("ratio of steps", cell, late=late)


def _spread(record: Record, metric: str) -> tuple[float | None, ...]:
    return tuple(record.metrics.number(f"{metric}{end}") for end in ("", "_p10", "_p90"))


def _size(record: Record) -> str:
    """Return depth and width; a fully connected network in float32 is what nothing is said of."""
    cell = record.cell
    words = (cell.arch or "", f"{text(cell.layers, 12)} × {text(cell.width, 12)}", cell.precision or "")
    return " ".join(text(word, 32) for word in words if word)


def _threads(record: Record) -> str:
    cell = record.cell
    if record.method == "backprop_all_threads" and cell.threads is not None and cell.stages is not None:
        return f"{cell.threads * cell.stages:g}"  # a cell names those of a stage
    return text(cell.get("threads"), 12) if "threads" in cell or cell.stages is None else DASH


def _arithmetic(record: Record) -> str:
    prob = record.cell.update_prob
    if record.metrics and prob not in (None, 1):
        return f"{100 * (1 - prob):.0f} % of updates skipped"
    return unit("ratio", record.metrics.ratio_arithmetic)


def _linked(record: Record, value: float | None, sign: str) -> str:
    alone = record.method in _WITHOUT_LINK or record.cell.link == "loopback"
    return DASH if alone or value is None else f"{value:g} {sign}"


def _count(name: str) -> Callable[[Record], str]:
    def cell(record: Record) -> str:
        found = record.cell.number(name)
        return DASH if found is None else f"{found:g}"

    return cell


def _said(name: str, most: int = 20) -> Callable[[Record], str]:
    return lambda record: text(record.cell.get(name), most)


def _tokens(record: Record) -> str:
    return f"{text(record.cell.batch_size, 12)} × {text(record.cell.get('context'), 12)}"


def _share(record: Record) -> str:
    """Return the logits that exist at once, in percent of all."""
    share = record.metrics.number("largest_logits_share")
    return DASH if share is None else f"{100 * share:.2f} %"


def _target(record: Record) -> str:
    target = record.metrics.target_accuracy_pct
    return DASH if target is None else f"{target:g} %"


#: Rounds that differ by more percent than this are not steady.
_STEADY_PCT = 1.0


def _time_to_loss(record: Record) -> str:
    """Return the time to a loss, marked where no rounds in a row were steady."""
    said = unit("time_to_loss_s", record.metrics.number("time_to_loss_s"))
    spread_pct = record.metrics.number("steady_spread_pct")
    steady = spread_pct is not None and spread_pct <= _STEADY_PCT
    return said if steady or said == DASH else f"{said} (unsteady)"


def _updates_to_loss(record: Record) -> str:
    updates = record.metrics.number("steps_to_loss")
    if updates is not None:
        return f"{updates:,.0f}"
    return "not reached" if record.metrics.number("num_loss_runs") else DASH


def _target_bits(record: Record) -> str:
    bits = record.metrics.number("target_val_bits")
    return DASH if bits is None else f"{bits:.3f} bits"


_METHOD = _key("method", bench_label)
_BATCH = _key("batch", lambda r: text(r.cell.batch_size, 12))
_THREADS = _key("threads", _threads)
_COMPILED = _key("compiled", lambda r: "compiled" if r.cell.compiled else DASH, optional=True)
_LAYERS = _key("layers × width", _size)
_SIZES = (_METHOD, _LAYERS, _BATCH, _THREADS)
_HORIZON = _key("horizon", _count("horizon"), optional=True)
_UNROLLED = (
    _METHOD,
    _key("network", lambda r: f"{text(r.cell.arch, 12)} {text(r.cell.width, 12)}"),
    _key("T", _said("unroll", 12)),
    _HORIZON,
    _BATCH,
    _THREADS,
)
_STEP = _figure("step", "step_ms_median")
_LEARNED = (
    _figure("time to it", "time_to_accuracy_s", optional=True),
    Column("target accuracy", _target, late=True, optional=True),
    _figure("accuracy", "accuracy_pct", late=True, optional=True),
)


#: For benchmarks that are known: the columns of a line.
_COLUMNS: Mapping[str, Sequence[BenchColumn]] = {
    "step": (
        *(*_SIZES, _COMPILED, _STEP),
        *_ratio("ratio to backprop", "ratio_to_backprop"),
        *(Column("arithmetic", _arithmetic), *_LEARNED),
    ),
    "memory": (
        *(_METHOD, _LAYERS, _BATCH),
        _key("threads", _threads, optional=True),
        _COMPILED,
        _key("segments", _count("segments"), optional=True),
        _figure("held for backward", "saved_bytes_peak"),
        _figure("ratio to backprop", "ratio_to_backprop"),
        _figure("peak memory", "peak_bytes", optional=True),
        _figure("ratio of peaks", "ratio_peak_to_backprop", optional=True),
        _figure("step", "step_ms_median", optional=True, late=True),
        _figure("ratio of steps", "ratio_step_to_backprop", optional=True, late=True),
    ),
    "memory of unrolls": (
        *_UNROLLED,
        _figure("held for backward", "saved_bytes_peak"),
        _figure("ratio to whole horizon", "ratio_to_full_bptt"),
        _figure("peak memory", "peak_bytes", optional=True),
        _figure("unroll", "unroll_ms_median"),
    ),
    "unroll": (
        *_UNROLLED,
        _figure("unroll", "step_ms_median"),
        *_ratio("ratio to hand-written", "ratio_to_hand_written"),
    ),
    "layer-parallel": (
        *(*_SIZES, _COMPILED, _STEP),
        *_ratio("ratio to best backprop", "ratio_to_best_backprop"),
        _figure("limit", "roofline_ms", late=True),
        _figure("ratio to limit", "ratio_to_roofline", late=True),
        *_LEARNED,
    ),
    "pipeline": (
        *(*_SIZES, _COMPILED),
        _key("stages", _count("stages")),
        _key(
            "round trip", lambda r: _linked(r, r.cell.rtt_ms, "ms"), optional=True, partly="Between processes"
        ),
        _key(
            "rate", lambda r: _linked(r, r.cell.mbit_s, "Mbit/s"), optional=True, partly="Between processes"
        ),
        _key("microbatches", _count("microbatches"), optional=True),
        _STEP,
        _figure("throughput", "examples_per_s"),
        *_ratio("ratio to best pipeline", "ratio_to_best_pipeline"),
        _LEARNED[0],
        Column("time to the loss", _time_to_loss, optional=True),
        Column("updates to it", _updates_to_loss, optional=True),
        Column("the loss", _target_bits, optional=True),
        _figure("ratio to backprop", "ratio_to_backprop", late=True),
        _figure("of it for microbatches", "microbatch_overhead_ms", late=True, optional=True),
        Column(
            "pace over the slowest stage's",
            lambda r: unit("ratio", r.metrics.number("pace_ratio")),
            late=True,
            optional=True,
        ),
        Column("cut after", lambda r: str(r.metrics.get("cuts") or DASH), late=True, optional=True),
        _figure("sent", "sent_bytes_per_step", late=True),
        _figure("the link alone", "link_alone_ms", late=True, optional=True),
        Column(
            "bytes of a row, up and down",
            lambda r: _each_way(
                r.metrics.number("sent_up_bytes_per_row"), r.metrics.number("sent_down_bytes_per_row")
            ),
            late=True,
            optional=True,
        ),
        _figure("peak memory", "peak_bytes", late=True, optional=True),
        _figure("a snapshot", "snapshot_ms", late=True, optional=True),
        Column(
            "throughput, saved every minute",
            lambda r: unit("ratio", r.metrics.number("throughput_ratio_saved_every_minute")),
            late=True,
            optional=True,
        ),
        _figure("with the other rate", "time_to_accuracy_other_lr_s", late=True, optional=True),
        *_LEARNED[1:],
    ),
    "codecs": (
        _METHOD,
        _key("width", _count("width")),
        *(_key("tokens", _count("tokens")), _THREADS),
        Column("bytes per token", lambda r: _rounded(r.metrics.number("sent_bytes_per_token"), 5)),
        Column("bits per value", lambda r: _rounded(r.metrics.number("bits_per_value"))),
        Column("relative error", lambda r: _rounded(r.metrics.number("relative_error"))),
        Column("encode, µs per kB", lambda r: _rounded(r.metrics.number("encode_us_per_kilobyte"))),
        Column("decode, µs per kB", lambda r: _rounded(r.metrics.number("decode_us_per_kilobyte"))),
        Column("worth it below", lambda r: _rate(r.metrics.number("worth_below_mbit_s"))),
        Column(
            "bytes per token, deflated",
            lambda r: _rounded(r.metrics.number("deflated_bytes_per_token")),
            late=True,
            optional=True,
        ),
        Column(
            "deflating worth it below",
            lambda r: _rate(r.metrics.number("deflating_worth_below_mbit_s")),
            late=True,
            optional=True,
        ),
    ),
    "gpt": (
        *(_METHOD, _LAYERS),
        _key("tokens", _tokens),
        _key("vocabulary", _count("vocabulary")),
        _key("modules", _count("modules")),
        _key("batches of an update", _count("accumulate")),
        _THREADS,
        _ratio_of_steps("ratio_step_to_backprop"),
        _figure("ratio of held", "ratio_to_backprop"),
        _figure("ratio of peaks", "ratio_peak_to_backprop", optional=True),
        *(_STEP, _figure("peak memory", "peak_bytes", optional=True)),
        _figure("held for backward", "saved_bytes_peak", late=True),
    ),
    "token-head": (
        _METHOD,
        _key("parts", _count("num_chunks")),
        _key("private blocks", _count("blocks")),
        _key("vocabulary", _count("vocabulary")),
        _key("width", _count("width")),
        *(_key("tokens", _tokens), _THREADS),
        _figure("logits at once", "logits_bytes_peak"),
        Column("of all logits", _share),
        _figure("peak memory", "peak_bytes", optional=True),
        _figure("ratio of peaks", "ratio_peak_to_whole_logits", optional=True),
        *(_STEP, _ratio_of_steps("ratio_step_to_whole_logits", late=True)),
        _figure("held for backward", "saved_bytes_peak", late=True),
    ),
    "import_time": (
        _key("program", lambda r: text(r.method, 40)),
        _figure("first step", "first_step_ms_median"),
        _figure("of it importing synthgrad", "import_ms_median"),
        _figure("beyond PyTorch alone", "added_ms_median"),
    ),
    "faults": (
        *(_key(name, _said(name)) for name in ("stages", "rank", "moment", "fault")),
        Column("others ended", lambda r: DASH if (s := r.metrics.others_ended_s) is None else f"{s:.2f} s"),
        Column("they say", lambda r: text(r.metrics.sentence or DASH, 400)),
    ),
}


def _each_way(up: float | None, down: float | None) -> str:
    return DASH if up is None or down is None else f"{up:,.0f} and {down:,.0f}"


def _rounded(value: float | None, digits: int = 3) -> str:
    return DASH if value is None else f"{value:.{digits}g}"


def _rate(value: float | None) -> str:
    return DASH if value is None else f"{value:,.0f} Mbit/s"


def _generic(records: Sequence[Record]) -> list[BenchColumn]:
    """Return every parameter and every metric of the lines, for a benchmark that nothing more is known of."""

    def parameter(name: str) -> BenchColumn:
        return _key(heading_of(name), lambda r: text(r.cell.get(name, DASH), 30))

    def measured(name: str) -> BenchColumn:
        def cell(record: Record) -> str:
            value = record.metrics.get(name)
            if value is None:
                return DASH
            found = record.metrics.number(name)
            return text(value, 40) if found is None else unit(name, found)

        return Column(heading_of(name), cell)

    cells = list(dict.fromkeys(name for r in records for name in r.cell))[:_MOST]
    metrics = list(dict.fromkeys(name for r in records for name in r.metrics))[:_MOST]
    method = _key("method", lambda r: text(r.method, 40))
    return [method, *map(parameter, cells), *map(measured, metrics)]


def bench_sheet(name: str, records: Sequence[Record]) -> Sheet:
    """Return the lines of one benchmark as text.

    Args:
        name: of the benchmark, without ``bench/``.
        records: its lines, at least one.
    """
    if name in _GATHERED:
        return _GATHERED[name](records)
    if name.startswith("plan of "):
        return plan_sheet(name.removeprefix("plan of "), records)
    records = without_rivals(name, records)
    columns = _COLUMNS.get(name) or _generic(records)
    sheet = sheet_of(
        f"bench/{name}", columns, records, is_bad=lambda r: r.status != "ok", failures=_failures(records)
    )
    rows = [_with_reason(sheet, row, r) for row, r in zip(sheet.rows, records, strict=True)]
    return replace(sheet, rows=tuple(rows))


def _with_reason(sheet: Sheet, row: tuple[str, ...], record: Record) -> tuple[str, ...]:
    """Return a row whose first column that was not measured says why."""
    if record.metrics:
        return row
    measures = [k for k, column in enumerate(sheet.columns) if not column.key]
    first = measures[0] if measures else len(row) - 1
    said = text(record.error or record.status, 40)
    return (*row[:first], said, *row[first + 1 :])


def _failures(records: Iterable[Record]) -> list[str]:
    """Return what went wrong, a line for each reason with the rows that it ended."""
    rows: dict[str, list[str]] = {}
    for record in records:
        if record.status != "ok":
            compiled = ", compiled" if record.cell.compiled else ""
            reason = f"{text(record.status, 30)}: {text(record.error, 400)}"
            rows.setdefault(reason, []).append(f"{bench_label(record)}{compiled}, {_size(record)}")
    return [f"{reason} ({text('; '.join(names), 300)})" for reason, names in rows.items()]


# What runs survived


@dataclass(frozen=True, slots=True)
class _Kills:
    """The kills of one loop and engine."""

    engine: str
    loop: str
    runs: pd.DataFrame

    def lost(self, *, most: bool) -> str:
        """Return how much work the middle kill cost, or the one that cost most."""
        lost = sorted(figures(self.runs, "lost_s"))
        return unit("s", lost[-1 if most else len(lost) // 2]) if lost else DASH


_KILLS: Sequence[Column[_Kills]] = (
    Column("engine", lambda k: k.engine, key=True),
    Column("loop", lambda k: k.loop, key=True),
    Column("kills", lambda k: str(len(k.runs))),
    Column("by SIGKILL", lambda k: str(int((k.runs["signal"] == "SIGKILL").sum()))),
    Column("equal", lambda k: str(int(k.runs["ok"].sum()))),
    Column("lost, median", lambda k: k.lost(most=False)),
    Column("lost, most", lambda k: k.lost(most=True)),
)


def _kills_sheet(records: Sequence[Record]) -> Sheet:
    runs = pd.DataFrame(
        {
            "engine": [text(r.cell.engine, 30) for r in records],
            "loop": [text(r.cell.loop, 30) for r in records],
            "signal": [r.cell.signal for r in records],
            "ok": [r.status == "ok" for r in records],
            "lost_s": pd.Series([r.metrics.lost_s for r in records], dtype=float),
        }
    )
    found = [_Kills(engine, loop, kills) for (engine, loop), kills in groups(runs, "engine", "loop")]
    failures = [text(r.error, 300) for r in records if r.status != "ok"]
    return sheet_of("bench/kills", _KILLS, found, is_bad=lambda k: not k.runs["ok"].all(), failures=failures)


_OUTCOMES: Mapping[str, str] = {
    "inputs": "damaged",
    "refused": "refused in a line",
    "warned": "told, went on",
    "unchanged": "no change",
    "as_given": "as given",
    "silently_wrong": "silently wrong",
    "traceback": "traceback",
    "hang": "hang",
}


def _damage_sheet(records: Sequence[Record]) -> Sheet:
    def counted(name: str, heading: str) -> BenchColumn:
        def cell(record: Record) -> str:
            count = record.metrics.number(name)
            return DASH if count is None else f"{count:,.0f}"

        return Column(heading, cell)

    columns = [
        _key("input", lambda r: text(r.cell.input, 40)),
        *(counted(*pair) for pair in _OUTCOMES.items()),
    ]
    failures = [text(r.error, 300) for r in records if r.status != "ok"]
    return sheet_of("bench/damage", columns, records, is_bad=lambda r: r.status != "ok", failures=failures)


#: Benchmarks whose lines are gathered into rows.
_GATHERED: Mapping[str, Callable[[Sequence[Record]], Sheet]] = {
    "networks": networks_sheet,
    "kills": _kills_sheet,
    "damage": _damage_sheet,
    "chaos": chaos_sheet,
    "absence": absence_sheet,
}
