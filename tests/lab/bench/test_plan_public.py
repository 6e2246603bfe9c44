from __future__ import annotations

from typing import Any

import pytest

from synthgrad.lab.bench.plan.public import BASELINES, public_rows
from synthgrad.planner import Network, simulate
from synthgrad.planner.programs import pipeline


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    return [dict(row) for row in public_rows()]


def stages(rows: list[dict[str, Any]], format: str) -> dict[float, dict[str, Any]]:
    return {
        r["cell"]["observe_prob"]: r["metrics"]
        for r in rows
        if r["method"] == "stages" and r["cell"]["format"] == format
    }


def test_published_steps_are_predicted_within_one_percent(rows: list[dict[str, Any]]) -> None:
    found = [r["metrics"] for r in rows if r["method"] == "1f1b"]
    assert [m["measured_ms"] for m in found] == [100_475.0, 19_889.0]
    for metrics in found:
        assert abs(metrics["error_pct"]) < 1
        assert metrics["error_pct"] == pytest.approx(
            100 * (metrics["predicted_ms"] / metrics["measured_ms"] - 1)
        )
        assert metrics["idle_cause"] == "bandwidth"
        assert metrics["mean_age"] is None
    tokens = 524_288
    assert [m["sent_bytes_per_step"] for m in found] == [7 * 2 * tokens * size for size in (2048, 322)]


@pytest.mark.parametrize("baseline", BASELINES)
def test_costs_are_those_of_the_step_without_links(baseline: Any) -> None:
    costs = baseline.costs()
    job = pipeline("1f1b", costs, processes=8, microbatches=baseline.microbatches)
    assert simulate(job, Network()).step_s == pytest.approx(baseline.no_links_s)
    for stage, cost in enumerate(costs):
        assert cost.backward_s == pytest.approx(2 * cost.forward_s)
        assert cost.forward_s / costs[0].forward_s == pytest.approx(baseline.flops(stage) / baseline.flops(0))


def test_flops_are_those_of_the_matrices() -> None:
    dense, narrow = BASELINES
    width = 1024
    block = 4 * width**2 + 2 * width * 4096 + 1024 * width
    assert dense.flops(0) == dense.flops(6) == 2 * block
    assert dense.flops(7) == 2 * (block + width * 50_304)
    # Three whole matrices, and two that write 160 numbers which a fixed matrix spreads; one whole that reads.
    below = 3 * width**2 + 160 * 2 * width + 1024 * width + width * 11_292 + 160 * (11_292 + width)
    assert narrow.flops(0) == 2 * below
    assert narrow.flops(7) == 2 * (4 * width**2 + 1024 * width + 2 * width * 11_292 + width * 50_304)
    assert (dense.tokens, narrow.tokens) == (8192, 16_384)


@pytest.mark.parametrize(("format", "size"), [("bfloat16", 2048), ("8 bits", 1024)])
def test_stages_take_what_an_inner_stage_receives(rows: list[dict[str, Any]], format: str, size: int) -> None:
    # A wire carries an activation, and an answer or a header of 48 bytes, for each of 64 batches.
    bits = 8 * 8192 * size
    for share, metrics in stages(rows, format).items():
        least = 64 * ((1 + share) * bits / 200e6 + 2 * 0.05)
        # With draws the busiest of the wires has a few more messages than the mean.
        assert least <= metrics["predicted_ms"] / 1e3 * 1.001 <= (1.05 if share == 0.25 else 1.003) * least
        assert metrics["idle_cause"] == "bandwidth"
        headers = 14 * 64 * 48
        sent = metrics["sent_bytes_per_step"]
        assert sent == pytest.approx(headers + 7 * 64 * (1 + share) * 8192 * size, rel=0.02)
        assert (metrics["mean_age"] is None) == (share == 0)
        if share:
            assert 1 <= metrics["mean_age"] <= 4


def test_names_are_told_without_simulating(rows: list[dict[str, Any]]) -> None:
    names = list(public_rows(names_only=True))
    assert [(r["method"], r["cell"], r["batch_size"]) for r in names] == [
        (r["method"], r["cell"], r["batch_size"]) for r in rows
    ]
    assert not any(r["metrics"] for r in names)
    assert len({str((r["method"], r["cell"])) for r in names}) == len(rows) == 8
