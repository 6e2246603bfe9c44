"""The tables of benchmarks: one for each, with columns of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from ..records import Record
from .bench_networks import NETWORKS_ABOUT, networks_markdown, networks_sheet
from .bench_pipeline import PIPELINE_ABOUT, PIPELINE_PEERS, PIPELINE_SIZES, pipeline_cells, without_rivals
from .bench_survival import SURVIVAL_ABOUT, damage_sheet, kills_sheet
from .fields import is_bench, number, part, status, text
from .sheet import DASH, Sheet, as_markdown, unit

__all__ = ["ABOUT", "bench_groups", "bench_label", "bench_markdown", "bench_sheet"]

#: What a benchmark measures, to stand over its table.
ABOUT: Mapping[str, str] = {
    "step": (
        "The time of one training step. Methods take turns, in rounds; the ratio is taken in each round to a "
        "hand-written loop of backpropagation, not compiled, and “10–90 %” is its spread over rounds. "
        "“Arithmetic” is the ratio of the floating-point operations of matrix products."
    ),
    "memory": (
        "The memory of one training step: what is held for the backward pass at its peak, and, where measured, "
        "the peak of all memory. Checkpointing and decoupling both trade work for memory. Of recurrent networks a step "
        "is an episode as long as the horizon; “unroll” is an episode's time over the number of its unrolls."
    ),
    "unroll": (
        "The time of one unroll of a recurrent network. Methods take turns, in rounds; the ratio is taken in each round "
        "to a hand-written loop of truncated backpropagation, and “10–90 %” is its spread over rounds."
    ),
    "layer-parallel": (
        "The time of one training step with all layers in one batch, beside hand-written loops of backpropagation. All "
        "take turns, in rounds; the ratio is taken in each round to the fastest of those loops, and “10–90 %” is its "
        "spread over rounds. The limit is what the step's matrix products and bytes would take at the speeds that the "
        "machine was measured to have."
    ),
    "pipeline": PIPELINE_ABOUT,
    "networks": NETWORKS_ABOUT,
    **SURVIVAL_ABOUT,
    "faults": (
        "A run on stages of which one rank is killed, frozen or raises: how long it takes until all others have ended, and "
        "what they say. One that had not ended after 20 s, or knew no cause, would be a failure."
    ),
}

#: What peers are that no training method is.
_PEERS: Mapping[str, str] = {
    "in_process": "decoupled, in process",
    "checkpointing": "backprop, checkpointed",
    "full_bptt": "bptt over the whole horizon",
    "hand_written": "bptt, hand-written loop",
    "backprop_eager": "backprop",
    "backprop_compiled": "backprop",
    "backprop_cudagraph": "backprop, CUDA graph",
    "layer_parallel": "layer-parallel",
    "layer_parallel_general": "layer-parallel, general step",
    **PIPELINE_PEERS,
}

_Cells = dict[str, str]

#: Benchmarks whose lines are gathered into rows.
_SHEETS: Mapping[str, Callable[[Sequence[Record]], Sheet]] = {
    "networks": networks_sheet,
    "kills": kills_sheet,
    "damage": damage_sheet,
}


def bench_groups(records: Iterable[Record]) -> dict[str, list[Record]]:
    """Return the lines of every benchmark among the records, by its name without ``bench/``."""
    groups: dict[str, list[Record]] = {}
    for record in records:
        if is_bench(record):
            groups.setdefault(text(str(record["experiment"])[len("bench/") :], 40), []).append(record)
    return groups


def bench_label(record: Record, *, with_rule: bool = True) -> str:
    """Name of a row: the method, its rule and engine, and what is skipped; not whether it is compiled."""
    cell, method = part(record, "cell"), text(record.get("method"), 40)
    rule = part(record, "config").get("rule")
    prob, sent = number(cell, "update_prob"), number(cell, "observe_prob")
    words = [
        _PEERS.get(method, method),
        text(rule, 60)
        if with_rule and isinstance(rule, str) and method not in ("backprop", "no_bprop")
        else "",
        text(cell.get("engine") or "", 40),
        text(cell.get("variant") or "", 40),
        f"p={prob:g}" if prob not in (None, 1) else "",
        f"{100 * sent:g} % of messages" if sent not in (None, 1) else "",
    ]
    return ", ".join(word for word in words if word)


def bench_sheet(name: str, records: Sequence[Record]) -> Sheet:
    """Return the lines of one benchmark as text.

    Args:
        name: of the benchmark, without ``bench/``.
        records: its lines, at least one.
    """
    if name in _SHEETS:
        return _SHEETS[name](records)
    records = without_rivals(name, records)
    make, optional = _COLUMNS.get(name, (None, ()))
    found = [make(r) for r in records] if make else _generic(records)
    headings = list(dict.fromkeys(heading for cells in found for heading in cells))
    rows: list[tuple[str, ...]] = []
    for record, cells in zip(records, found, strict=True):
        if not part(record, "metrics"):
            # The first thing that was not measured says why.
            sizes = {*_size(record), *PIPELINE_SIZES}
            first = next((h for h in headings if h not in sizes), headings[-1])
            cells = cells | {first: text(record.get("error") or status(record), 40)}
        rows.append(tuple(cells.get(heading, DASH) for heading in headings))
    sheet = Sheet(
        title=f"bench/{name}",
        headings=tuple(headings),
        rows=tuple(rows),
        bad=tuple(r.get("status") != "ok" for r in records),
        failures=_failures(records),
    )
    return sheet.without_empty(optional)


def _failures(records: Iterable[Record]) -> tuple[str, ...]:
    """Return what went wrong, a line for each reason with the rows that it ended."""
    rows: dict[str, list[str]] = {}
    for record in records:
        if record.get("status") != "ok":
            reason = f"{status(record)}: {text(record.get('error'), 400)}"
            size = _size(record)
            compiled = ", compiled" if size["compiled"] != DASH else ""
            rows.setdefault(reason, []).append(f"{size['method']}{compiled}, {size['layers × width']}")
    return tuple(f"{reason} ({text('; '.join(names), 300)})" for reason, names in rows.items())


def _size(record: Record) -> _Cells:
    cell = part(record, "cell")
    size = f"{text(cell.get('layers'), 12)} × {text(cell.get('width'), 12)}"
    # A fully connected network in float32 is what nothing is said of.
    words = (text(cell.get("arch") or "", 12), size, text(cell.get("precision") or "", 12))
    return {
        "method": bench_label(record),
        "layers × width": " ".join(word for word in words if word),
        "batch": text(cell.get("batch_size"), 12),
        "threads": text(cell.get("threads"), 12),
        "compiled": "compiled" if cell.get("compiled") is True else DASH,
    }


def _recurrent_size(record: Record) -> _Cells:
    cell = part(record, "cell")
    horizon = {"horizon": text(cell["horizon"], 12)} if "horizon" in cell else {}
    size = _size(record)
    return {
        "method": size["method"],
        "network": f"{text(cell.get('arch'), 12)} {text(cell.get('width'), 12)}",
        "T": text(cell.get("unroll"), 12),
        **horizon,
        "batch": size["batch"],
        "threads": size["threads"],
    }


def _unroll(record: Record) -> _Cells:
    metrics = part(record, "metrics")
    low, high = (number(metrics, f"ratio_to_hand_written_p{p}") for p in (10, 90))
    return _recurrent_size(record) | {
        "unroll": unit("ms", number(metrics, "step_ms_median")),
        "ratio to hand-written": unit("ratio", number(metrics, "ratio_to_hand_written")),
        "10–90 %": DASH if low is None or high is None else f"{low:.2f}–{high:.2f}",
    }


def _lstm_memory(record: Record) -> _Cells:
    columns = {
        "held for backward": "saved_bytes_peak",
        "ratio to whole horizon": "ratio_to_full_bptt",
        "peak memory": "peak_bytes",
        "unroll": "unroll_ms_median",
    }
    metrics = part(record, "metrics")
    return _recurrent_size(record) | {h: unit(name, number(metrics, name)) for h, name in columns.items()}


def _step(record: Record) -> _Cells:
    cell, metrics = part(record, "cell"), part(record, "metrics")
    low, high = number(metrics, "ratio_to_backprop_p10"), number(metrics, "ratio_to_backprop_p90")
    prob = number(cell, "update_prob")
    arithmetic = unit("ratio", number(metrics, "ratio_arithmetic"))
    if metrics and prob not in (None, 1):
        arithmetic = f"{100 * (1 - prob):.0f} % of updates skipped"
    return _size(record) | {
        "step": unit("ms", number(metrics, "step_ms_median")),
        "ratio to backprop": unit("ratio", number(metrics, "ratio_to_backprop")),
        "10–90 %": DASH if low is None or high is None else f"{low:.2f}–{high:.2f}",
        "arithmetic": arithmetic,
        **_learned(metrics),
    }


def _learned(metrics: Mapping[str, object]) -> _Cells:
    target = number(metrics, "target_accuracy_pct")
    return {
        "target accuracy": DASH if target is None else f"{target:g} %",
        "time to it": unit("s", number(metrics, "time_to_accuracy_s")),
        "accuracy": unit("pct", number(metrics, "accuracy_pct")),
    }


def _layer_parallel(record: Record) -> _Cells:
    metrics = part(record, "metrics")
    low, high = (number(metrics, f"ratio_to_best_backprop_p{p}") for p in (10, 90))
    return _size(record) | {
        "step": unit("ms", number(metrics, "step_ms_median")),
        "ratio to best backprop": unit("ratio", number(metrics, "ratio_to_best_backprop")),
        "10–90 %": DASH if low is None or high is None else f"{low:.2f}–{high:.2f}",
        "limit": unit("ms", number(metrics, "roofline_ms")),
        "ratio to limit": unit("ratio", number(metrics, "ratio_to_roofline")),
        **_learned(metrics),
    }


def _pipeline(record: Record) -> _Cells:
    return _size(record) | pipeline_cells(record) | _learned(part(record, "metrics"))


def _memory(record: Record) -> _Cells:
    if "horizon" in part(record, "cell"):
        return _lstm_memory(record)
    metrics = part(record, "metrics")
    columns = {
        "held for backward": "saved_bytes_peak",
        "ratio to backprop": "ratio_to_backprop",
        "peak memory": "peak_bytes",
        "ratio of peaks": "ratio_peak_to_backprop",
        "step": "step_ms_median",
        "ratio of steps": "ratio_step_to_backprop",
    }
    segments = number(part(record, "cell"), "segments")
    return (
        _size(record)
        | {"segments": DASH if segments is None else f"{segments:g}"}
        | {h: unit(name, number(metrics, name)) for h, name in columns.items()}
    )


def _faults(record: Record) -> _Cells:
    cell, metrics = part(record, "cell"), part(record, "metrics")
    ended_s = number(metrics, "others_ended_s")
    return {name: text(cell.get(name), 20) for name in ("stages", "rank", "moment", "fault")} | {
        "others ended": DASH if ended_s is None else f"{ended_s:.2f} s",
        "they say": text(metrics.get("sentence") or DASH, 400),
    }


_LEARNED = ("target accuracy", "time to it", "accuracy")

#: For benchmarks that are known: the columns of a line, and those that may be left out.
_COLUMNS: Mapping[str, tuple[Callable[[Record], _Cells], tuple[str, ...]]] = {
    "step": (_step, ("compiled", *_LEARNED)),
    "memory": (
        _memory,
        ("threads", "compiled", "segments", "peak memory", "ratio of peaks", "step", "ratio of steps"),
    ),
    "unroll": (_unroll, ()),
    "layer-parallel": (_layer_parallel, ("compiled", *_LEARNED)),
    "faults": (_faults, ()),
    "pipeline": (
        _pipeline,
        (
            *("compiled", "round trip", "rate", "microbatches", "of it for microbatches", "peak memory"),
            *("with the other rate", *_LEARNED),
        ),
    ),
}


def _generic(records: Sequence[Record]) -> list[_Cells]:
    """Return every parameter and every metric of the lines, for a benchmark that nothing more is known of."""
    cells = list(dict.fromkeys(str(name) for r in records for name in part(r, "cell")))[:_MOST]
    metrics = list(dict.fromkeys(str(name) for r in records for name in part(r, "metrics")))[:_MOST]
    return [
        {"method": text(r.get("method"), 40)}
        | {_heading(name): text(part(r, "cell").get(name, DASH), 30) for name in cells}
        | {_heading(name): _measured(name, part(r, "metrics").get(name)) for name in metrics}
        for r in records
    ]


_MOST = 24  # columns of parameters, and of metrics


def _heading(name: str) -> str:
    """Return a metric's name without its unit, which stands in the cells."""
    words = text(name.removesuffix("_per_s"), 40).split("_")
    kept = [word for word in words if word not in ("ms", "us", "s", "bytes", "pct")]
    return " ".join(kept or words)


def _measured(name: str, value: object) -> str:
    if value is None:
        return DASH
    found = number({name: value}, name)
    return text(value, 40) if found is None else unit(name, found)


def bench_markdown(records: Iterable[Record]) -> str:
    """Return the lines of benchmarks as tables for a document, one for each benchmark."""
    return "\n".join(
        networks_markdown(group) if name == "networks" else as_markdown(bench_sheet(name, group))
        for name, group in bench_groups(records).items()
    )
