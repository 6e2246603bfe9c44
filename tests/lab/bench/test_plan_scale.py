from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from synthgrad.lab.bench.plan.public import BASELINES
from synthgrad.lab.bench.plan.scale import RATES_MBIT_S, ROUND_TRIPS_MS, scale_rows, stage_cost
from synthgrad.planner import Link, Network, simulate
from synthgrad.planner.programs import decoupled

ROUND_TRIPS, RATES = (0.1, 200.0), (1e3, 4e5)


@pytest.fixture(scope="module")
def rows() -> dict[tuple[float | None, float | None], dict[str, Any]]:
    found = scale_rows(stages=6, round_trips_ms=ROUND_TRIPS, rates_mbit_s=RATES)
    return {(r["cell"]["rtt_ms"], r["cell"]["mbit_s"]): dict(r["metrics"]) for r in found}


def test_a_stage_computes_as_fast_as_the_gpus_of_the_published_pipelines() -> None:
    cost, measured = stage_cost(), BASELINES[0]
    tokens, width = 8192, 4096
    flops = 2.0 * tokens * (12 * width**2 + 1024 * width)
    speed = 64 * tokens * measured.flops(0) / measured.costs()[0].forward_s
    assert 1e14 < speed < 1e15  # a second
    assert cost.forward_s == pytest.approx(flops / speed)
    assert cost.backward_s == pytest.approx(2 * cost.forward_s)
    assert cost.credit_s == pytest.approx(2.0 * tokens * width**2 / speed)
    assert cost.observe_s == pytest.approx(2 * cost.credit_s)
    assert cost.output_bytes == 2 * tokens * width


def test_where_bandwidth_suffices_no_round_trip_costs_anything(rows: dict[Any, dict[str, Any]]) -> None:
    alone = rows[None, None]
    assert alone["predicted_ms"] == pytest.approx(1e3 * stage_cost().decoupled_s)
    assert alone["lost_pct"] == 0
    for rtt in ROUND_TRIPS:
        assert rows[rtt, 4e5]["predicted_ms"] == pytest.approx(alone["predicted_ms"])
        assert rows[rtt, 4e5]["lost_pct"] == pytest.approx(0, abs=1e-6)
    assert rows[0.1, 4e5]["mean_age"] == 1.0
    # A round trip, the bytes both ways and a pass above, in whole steps.
    cost = stage_cost()
    wire = cost.output_bytes * 8 / 4e11
    trip = 0.2 + 2 * wire + cost.forward_s + cost.backward_s
    assert abs(rows[200.0, 4e5]["mean_age"] - trip / cost.decoupled_s) <= 1
    assert rows[200.0, 4e5]["window"] == 10


def test_a_wire_that_is_slower_than_a_step_sets_the_pace(rows: dict[Any, dict[str, Any]]) -> None:
    for rtt in ROUND_TRIPS:
        metrics = rows[rtt, 1e3]
        wire_ms = 1e3 * (stage_cost().output_bytes + 48) * 8 / 1e9
        assert metrics["predicted_ms"] == pytest.approx(wire_ms)
        assert metrics["lost_pct"] == pytest.approx(100 * (1 - rows[None, None]["predicted_ms"] / wire_ms))
        assert metrics["sent_bytes_per_step"] == pytest.approx(10 * (stage_cost().output_bytes + 48))


@pytest.mark.parametrize(("rtt_ms", "mbit_s"), [(200.0, 4e5), (100.0, 1e4), (50.0, 2e4)])
def test_few_steps_tell_what_many_do(rtt_ms: float, mbit_s: float) -> None:
    (_, short) = scale_rows(stages=8, round_trips_ms=[rtt_ms], rates_mbit_s=[mbit_s])
    link = Link.of(rtt_ms=rtt_ms, mbit_s=mbit_s)
    job = decoupled([stage_cost()] * 8, window=short["metrics"]["window"], steps=400)
    long = simulate(replace(job, warm=200), Network.of(link))
    assert short["metrics"]["predicted_ms"] == pytest.approx(1e3 * long.step_s, rel=1e-3)
    assert short["metrics"]["mean_age"] == pytest.approx(long.mean_age, abs=0.05)


def test_the_grid_spans_links_of_all_kinds_and_is_told_without_simulating() -> None:
    names = list(scale_rows(names_only=True))
    assert len(names) == 1 + len(ROUND_TRIPS_MS) * len(RATES_MBIT_S)
    assert {r["cell"]["stages"] for r in names} == {256}
    assert (min(ROUND_TRIPS_MS), max(ROUND_TRIPS_MS)) == (0.1, 200.0)
    assert (min(RATES_MBIT_S), max(RATES_MBIT_S)) == (10.0, 4e5)
    assert not any(r["metrics"] for r in names)
    assert len({str(r["cell"]) for r in names}) == len(names)
