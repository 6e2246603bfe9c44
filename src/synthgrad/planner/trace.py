"""Simulated runs as traces that Perfetto and chrome://tracing open: who computed what when, and what was on its way.

The format is that of Chrome's trace events, in microseconds: a process for each process, with a thread for what it computes
(complete events) and the messages that it sends (asynchronous events, which may overlap).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..core import ConfigError
from .run import Run, Span, Transfer

__all__ = ["steady_part", "trace_events", "write_trace"]

#: What the first letter of a tag stands for.
_MESSAGES = {"F": "activation", "B": "gradient", "R": "part of a sum"}


def steady_part(run: Run, steps: int = 1) -> tuple[float, float]:
    """Return begin and end, in seconds, of the last steps in which all processes of a run were at work.

    Processes that do not wait for each other end at different times: the part ends when the first of them does.

    Args:
        run: a run with its trace.
        steps: how many.

    Raises:
        ConfigError: if the run has no trace.
    """
    if not run.spans:
        raise ConfigError(f"the run of '{run.name}' has no trace; simulate it with trace=True")
    ends: dict[int, float] = {}
    for span in run.spans:
        ends[span.process] = max(ends.get(span.process, 0.0), span.end_s)
    end_s = min(ends.values())
    if run.end_s - end_s < run.step_s:  # they end together, or within a step as those of a pipeline do
        end_s = run.end_s
    return max(0.0, end_s - steps * run.step_s), end_s


def trace_events(
    run: Run, *, part: tuple[float, float] | None = None, owners: Mapping[int, int] | None = None
) -> dict[str, Any]:
    """Return a run as an object in Chrome's trace event format.

    Args:
        run: a run with its trace.
        part: begin and end, in seconds: what lies in between, at least partly, moved so that it begins at 0, and without
            what was before. None for all.
        owners: of processes that stand for the communication of others: their numbers, as in `Job.owners`.

    Raises:
        ConfigError: if the run has no trace.

    >>> from synthgrad.planner import Compute, Job, Mark, Network, simulate
    >>> job = Job("one", lambda: [iter([Compute("forward", 0, 0.5), Mark(0)])], num_stages=1, steps=1)
    >>> events = trace_events(simulate(job, Network(), trace=True))["traceEvents"]
    >>> tuple((e["name"], e["ts"], e["dur"]) for e in events if e["ph"] == "X")
    (('forward 0', 0.0, 500000.0),)
    """
    if not run.spans:
        raise ConfigError(f"the run of '{run.name}' has no trace; simulate it with trace=True")
    owners = owners or {}
    begin_s, end_s = part or (0.0, run.end_s)
    spans = [s for s in run.spans if s.end_s > begin_s and s.start_s < end_s]
    transfers = [t for t in run.transfers if t.arrives_s > begin_s and t.sent_s < end_s]
    transfers = [t for t in transfers if owners.get(t.source, t.source) != owners.get(t.to, t.to)]
    processes = range(len(run.stages))
    events: list[dict[str, Any]] = [*_names(run.name, processes)]
    events += [_computation(span, owners, begin_s) for span in spans]
    for number, transfer in enumerate(transfers):
        events += _message(transfer, number, owners, begin_s)
    return {
        "traceEvents": events,
        "displayTimeUnit": "ms",
        "otherData": {"schedule": run.name, "step_ms": 1e3 * run.step_s, "batch_size": run.batch_size},
    }


def write_trace(
    path: str | Path,
    run: Run,
    *,
    part: tuple[float, float] | None = None,
    owners: Mapping[int, int] | None = None,
) -> None:
    """Write a run as a trace file; open it at https://ui.perfetto.dev or in chrome://tracing.

    Args:
        path: of the file, ``*.json``.
        run: a run with its trace.
        part: see `trace_events`.
        owners: see there.

    Raises:
        ConfigError: if the run has no trace, or the file cannot be written.
    """
    text = json.dumps(trace_events(run, part=part, owners=owners), separators=(",", ":"), allow_nan=False)
    try:
        Path(path).write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be written ({error.strerror or error}); give a file in a folder that exists"
        ) from error


def _names(schedule: str, processes: Sequence[int]) -> Iterable[dict[str, Any]]:
    for k in processes:
        for name, args in (
            ("process_name", {"name": f"{schedule}: process {k}"}),
            ("process_sort_index", {"sort_index": k}),
        ):
            yield {"ph": "M", "pid": k, "tid": 0, "name": name, "args": args}
        yield {"ph": "M", "pid": k, "tid": 0, "name": "thread_name", "args": {"name": "computes"}}


def _computation(span: Span, owners: Mapping[int, int], begin_s: float) -> dict[str, Any]:
    start_s = max(span.start_s, begin_s)
    return {
        "ph": "X",
        "pid": owners.get(span.process, span.process),
        "tid": 0 if span.process not in owners else span.process,
        "ts": _us(start_s - begin_s),
        "dur": _us(span.end_s - start_s),
        "name": f"{span.kind} {span.batch}",
        "cat": span.kind,
        "args": {"stage": span.stage, "batch": span.batch},
    }


def _message(
    transfer: Transfer, number: int, owners: Mapping[int, int], begin_s: float
) -> Iterable[dict[str, Any]]:
    kind, stage, batch = transfer.tag
    source, to = (owners.get(k, k) for k in (transfer.source, transfer.to))
    shared = {
        "pid": source,
        "tid": 0,
        "cat": "message",
        "id": number,
        "name": f"{_MESSAGES.get(kind, kind)} to process {to}",
    }
    told = {
        "bytes": transfer.num_bytes,
        "stage": stage,
        "batch": batch,
        "queued_ms": 1e3 * (transfer.begins_s - transfer.sent_s),
        "on_the_wire_ms": 1e3 * (transfer.leaves_s - transfer.begins_s),
        "on_its_way_ms": 1e3 * (transfer.arrives_s - transfer.leaves_s),
    }
    yield {"ph": "b", "ts": _us(max(0.0, transfer.sent_s - begin_s)), "args": told, **shared}
    yield {"ph": "e", "ts": _us(transfer.arrives_s - begin_s), **shared}


def _us(seconds: float) -> float:
    return round(1e6 * seconds, 3)
