"""Traces: what Perfetto reads of two processes whose times are known, and the part in which a run is steady."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from synthgrad.core import ConfigError
from synthgrad.planner import Compute, Job, Link, Mark, Network, Run, Send, StageCost, Wait, simulate
from synthgrad.planner.programs import data_parallel, decoupled, pipeline
from synthgrad.planner.trace import steady_part, trace_events, write_trace


def run(**how: Any) -> Run:
    lower = [Compute("forward", 0, 2.0), Send(("F", 1, 0), 1, 100.0), Mark(0)]
    upper = [Wait(("F", 1, 0)), Compute("forward", 0, 1.0), Mark(0)]
    job = Job("two", lambda: [iter(lower), iter(upper)], num_stages=2, steps=1, warm=0)
    # Half a round trip of 0.5 s, and 100 bytes in 0.25 s.
    return simulate(job, Network.of(Link.of(rtt_ms=1000, mbit_s=0.0032)), trace=True, **how)


def of(events: dict[str, Any], phase: str) -> list[dict[str, Any]]:
    return [e for e in events["traceEvents"] if e["ph"] == phase]


def test_computations_are_complete_events_of_their_process_in_microseconds() -> None:
    shown = [
        (e["pid"], e["tid"], e["name"], e["cat"], e["ts"], e["dur"]) for e in of(trace_events(run()), "X")
    ]
    assert shown == [
        (0, 0, "forward 0", "forward", 0.0, 2e6),
        (1, 0, "forward 0", "forward", 2.75e6, 1e6),
    ]


def test_messages_are_asynchronous_events_of_their_sender() -> None:
    events = trace_events(run())
    (begin,), (end,) = of(events, "b"), of(events, "e")
    assert {k: begin[k] for k in ("pid", "name", "ts")} == {
        "pid": 0,
        "name": "activation to process 1",
        "ts": 2e6,
    }
    assert end["ts"] == 2.75e6
    assert all(begin[k] == end[k] for k in ("id", "cat", "pid", "tid", "name"))
    assert begin["args"] == {
        "bytes": 100.0, "stage": 1, "batch": 0, "queued_ms": 0.0, "on_the_wire_ms": 250.0, "on_its_way_ms": 500.0,
    }  # fmt: skip


def test_processes_and_threads_have_names() -> None:
    names = {(e["pid"], e["name"]): e["args"] for e in of(trace_events(run()), "M")}
    assert names[0, "process_name"] == {"name": "two: process 0"}
    assert names[1, "process_name"] == {"name": "two: process 1"}
    assert names[1, "thread_name"] == {"name": "computes"}
    assert names[1, "process_sort_index"] == {"sort_index": 1}


def test_a_part_begins_at_zero_and_has_what_lies_in_it_at_least_partly() -> None:
    events = trace_events(run(), part=(1.0, 2.5))
    assert [(e["pid"], e["ts"], e["dur"]) for e in of(events, "X")] == [(0, 0.0, 1e6)]
    assert [e["ts"] for e in of(events, "b")] == [1e6]
    assert [e["ts"] for e in of(trace_events(run(), part=(2.25, 3.0)), "b")] == [0.0]
    assert not of(trace_events(run(), part=(2.75, 4.0)), "b")


def test_what_communicates_for_a_process_is_shown_as_its_own() -> None:
    job = data_parallel(StageCost(1.0, 1.0, parameter_bytes=64.0), processes=2, steps=2)
    events = trace_events(simulate(job, Network(), trace=True), owners=job.owners)
    assert {e["pid"] for e in events["traceEvents"]} == {0, 1}
    assert {e["name"] for e in of(events, "b")} == {
        "part of a sum to process 0",
        "part of a sum to process 1",
    }


def test_a_trace_is_a_file_of_json(tmp_path: Path) -> None:
    write_trace(tmp_path / "trace.json", run())
    read = json.loads((tmp_path / "trace.json").read_text())
    assert read == json.loads(json.dumps(trace_events(run())))
    assert read["otherData"] == {"schedule": "two", "step_ms": 3750.0, "batch_size": 1}


def test_the_steady_part_of_a_pipeline_is_its_last_step() -> None:
    costs = [StageCost(1.0, 2.0, optimizer_s=0.5)] * 2
    found = simulate(pipeline("gpipe", costs, processes=2, microbatches=2), Network(), trace=True)
    begin, end = steady_part(found)
    assert end == found.end_s
    assert end - begin == pytest.approx(found.step_s)
    inside = [s for s in found.spans if s.start_s >= begin - 1e-9]
    assert sum(s.kind == "forward" for s in inside) == 4
    assert steady_part(found, 2)[0] == pytest.approx(begin - found.step_s)


def test_the_steady_part_of_stages_ends_when_the_first_of_them_does() -> None:
    costs = [StageCost(1.0, 2.0, output_bytes=8.0, credit_s=0.25)] * 2
    link = Link.of(rtt_ms=40_000)
    found = simulate(decoupled(costs, link=link), Network.of(link), trace=True)
    begin, end = steady_part(found, 4)
    lower = max(s.end_s for s in found.spans if s.process == 0)
    assert end == lower < found.end_s - 10
    for process in (0, 1):
        busy = [s for s in found.spans if s.process == process and s.end_s > begin and s.start_s < end]
        assert sum(s.kind == "forward" for s in busy) in (4, 5)


def test_a_run_without_a_trace_has_none(tmp_path: Path) -> None:
    job = Job("one", lambda: [iter([Compute("forward", 0, 1.0), Mark(0)])], num_stages=1, steps=1)
    plain = simulate(job, Network())
    for attempt in (lambda: trace_events(plain), lambda: steady_part(plain)):
        with pytest.raises(ConfigError, match="the run of 'one' has no trace; simulate it with trace=True"):
            attempt()
    with pytest.raises(ConfigError, match=r"cannot be written \(No such file or directory\)"):
        write_trace(tmp_path / "none" / "trace.json", run())
