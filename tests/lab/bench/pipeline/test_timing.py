"""Figures from answers that are made up: who is best, what the ratios are of, what is left out."""

from __future__ import annotations

from typing import Any

import pytest

from synthgrad.lab.bench.pipeline import timing
from synthgrad.lab.bench.pipeline.cases import Case
from synthgrad.lab.bench.pipeline.learn import Goal
from synthgrad.lab.bench.pipeline.network import Size
from synthgrad.lab.bench.pipeline.session import Session
from synthgrad.lab.bench.pipeline.timing import LR, OTHER_LR, measure
from synthgrad.lab.wan import Link

SIZE = Size(width=8, layers=5, batch_size=100, stages=2, threads=1, seed=0)
GOAL = Goal("mnist", 98.0, 10, 5)

BACKPROP, OURS = Case("backprop"), Case("stages", observe_prob=1.0)
SLOW, FAST, OTHER = Case("gpipe", 2), Case("gpipe", 4), Case("1f1b", 2)
#: Milliseconds of a step in both processes.
STEP_MS = {BACKPROP: (8.0,), OURS: (2.0, 3.0), SLOW: (9.0, 9.0), FAST: (6.0, 5.0), OTHER: (12.0, 1.0)}


class Scripted(Session):
    """A session whose steps take what the script says."""

    breaks: dict[Case, int] = {}

    def __init__(self, size: Size, lr: float, data_dir: str | None, network: object) -> None:
        super().__init__(size, lr, data_dir, None)
        self.calls: list[tuple[Any, ...]] = []
        self.num_runs: dict[Case, int] = {}
        made.append(self)

    def build(self, case: Case) -> bool:
        return True

    def run(self, case: Case, warm: int, steps: int, expected_s: float = 0.0) -> list[dict[str, Any]] | None:
        self.calls.append((case, warm, steps))
        self.num_runs[case] = self.num_runs.get(case, 0) + 1
        if self.num_runs[case] == self.breaks.get(case):
            self.failed[case] = "it broke"
            return None
        return [
            {
                "seconds": ms * 1e-3 * steps,
                "loss": 1.5 if rank else None,
                "before": facts(case, 0),
                "after": facts(case, steps),
                "peak_bytes": 1000 * (rank + 1),
            }
            for rank, ms in enumerate(STEP_MS[case])
        ]

    def learn(self, case: Case, lr: float, goal: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        self.calls.append(("learn", case, lr))
        if case == OTHER:
            return {"learn_error": "it broke"}
        return {"time_to_accuracy_s": 1.0 if lr == LR else None, "steps_to_accuracy": 5}


made: list[Scripted] = []


def facts(case: Case, steps: int) -> dict[str, Any]:
    found: dict[str, Any] = {"sent_bytes": 40 * steps}
    if case.is_ours:
        found |= {"waited_s": 2e-3 * steps, "busy_s": 1e-3 * steps, "window": 7, "round_trip_s": 0.05}
        found |= {"snapshot_s": 0.06, "cuts": "layer4"}
    return found


def measured(
    goal: Goal | None = None, cases: tuple[Case, ...] = tuple(STEP_MS)
) -> tuple[dict[Case, dict[str, Any]], dict[Case, str], Scripted]:
    made.clear()
    found = measure(
        cases, SIZE, link=None, rounds=3, seconds=0.06, goal=goal, data_dir=None, make_session=Scripted
    )
    return *found, made[0]


def test_the_slowest_process_counts_and_ratios_are_of_the_best_pipeline() -> None:
    metrics, failed, _ = measured()
    assert failed == {}
    assert {k: m["step_ms_median"] for k, m in metrics.items()} == pytest.approx(
        {BACKPROP: 8.0, OURS: 3.0, SLOW: 9.0, FAST: 6.0, OTHER: 12.0}
    )
    assert metrics[OURS]["ratio_to_best_pipeline"] == pytest.approx(0.5)
    assert metrics[OURS]["ratio_to_backprop"] == pytest.approx(3 / 8)
    assert metrics[FAST]["ratio_to_best_pipeline"] == 1.0
    assert metrics[OURS]["examples_per_s"] == pytest.approx(100 / 3e-3)


def test_of_each_schedule_the_best_number_of_microbatches_is_marked() -> None:
    metrics, _, _ = measured()
    assert {k: m.get("is_best") for k, m in metrics.items()} == {
        BACKPROP: None, OURS: None, SLOW: False, FAST: True, OTHER: True,
    }  # fmt: skip


def test_what_cutting_batches_costs_is_said_of_each_schedule(monkeypatch: pytest.MonkeyPatch) -> None:
    cut, alone = Case("backprop_microbatches", 4), Case("independent")
    monkeypatch.setitem(STEP_MS, cut, (11.0,))
    monkeypatch.setitem(STEP_MS, alone, (10.0, 10.0))
    metrics, _, session = measured(GOAL, tuple(STEP_MS))
    assert metrics[FAST]["microbatch_overhead_ms"] == pytest.approx((11 - 8) / 2)
    assert "microbatch_overhead_ms" not in metrics[SLOW]
    assert metrics[cut]["is_best"]  # as many as the best pipeline has
    assert metrics[alone]["examples_per_s"] == pytest.approx(2 * 100 / 10e-3)
    assert {call[1] for call in session.calls if call[0] == "learn"}.isdisjoint({cut, alone})


def test_bytes_are_of_all_processes_and_memory_is_of_each() -> None:
    metrics, _, _ = measured()
    assert metrics[FAST]["sent_bytes_per_step"] == 80
    assert metrics[BACKPROP]["sent_bytes_per_step"] == 40
    assert (metrics[FAST]["peak_bytes"], metrics[FAST]["peak_bytes_stage0"]) == (2000, 1000)
    assert metrics[OURS]["window_steps"] == 7
    assert metrics[OURS]["cuts"] == "layer4"
    assert metrics[OURS]["waited_ms_stage1"] == pytest.approx(2.0)
    assert metrics[OURS]["snapshot_ms"] == pytest.approx(60)
    assert metrics[OURS]["throughput_ratio_saved_every_minute"] == pytest.approx(60 / 60.06)
    assert "window_steps" not in metrics[FAST]
    assert "snapshot_ms" not in metrics[FAST]
    assert not [name for name in metrics[FAST] if name.startswith("link")]


def test_turns_have_about_the_same_length_and_begin_without_a_clock() -> None:
    _, _, session = measured()
    turns = {case: (warm, steps) for case, warm, steps in session.calls[-len(STEP_MS) :]}
    assert turns == {BACKPROP: (2, 8), OURS: (4, 20), SLOW: (2, 7), FAST: (2, 10), OTHER: (1, 5)}
    order = [call[0] for call in session.calls[-2 * len(STEP_MS) :]]
    assert order == [*STEP_MS, *STEP_MS]  # in turn


@pytest.mark.parametrize("at", [1, 2, 4])
def test_a_method_that_breaks_has_no_figures_and_the_others_go_on(
    at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Scripted, "breaks", {FAST: at})
    metrics, failed, _ = measured()
    assert failed == {FAST: "it broke"}
    assert set(metrics) == set(STEP_MS) - {FAST}
    assert metrics[SLOW]["is_best"]
    assert metrics[OURS]["ratio_to_best_pipeline"] == pytest.approx(3 / 9)


def test_without_peers_there_are_no_ratios() -> None:
    metrics, _, _ = measured(cases=(OURS,))
    assert not [name for name in metrics[OURS] if name.startswith("ratio")]


def test_what_is_best_learns_and_true_gradients_have_two_rates() -> None:
    metrics, _, session = measured(GOAL)
    assert [call[1:] for call in session.calls if call[0] == "learn"] == [
        *((BACKPROP, LR), (BACKPROP, OTHER_LR), (OURS, LR), (FAST, LR), (FAST, OTHER_LR), (OTHER, LR))
    ]
    assert metrics[FAST]["time_to_accuracy_s"] == 1.0
    assert (metrics[FAST]["other_lr"], metrics[FAST]["time_to_accuracy_other_lr_s"]) == (OTHER_LR, None)
    assert "other_lr" not in metrics[OURS]
    assert metrics[OTHER]["learn_error"] == "it broke"
    assert "time_to_accuracy_s" not in metrics[SLOW]


def test_the_bytes_of_a_step_bound_it_from_below() -> None:
    size = Size(128, 4, 32, 4, 1, 0, arch="gpt", context=64)
    metrics = {"sent_up_bytes_per_row": 66.0, "sent_down_bytes_per_row": 132.0, "step_ms_median": 200.0}
    even = timing._link_alone(metrics, size, Link(50, 20.0))
    # 2,048 rows of 132 bytes downwards, at 20 bits in a microsecond.
    assert even == {"link_alone_ms": pytest.approx(108.1344), "link_alone_ratio": pytest.approx(0.540672)}
    uneven = timing._link_alone(metrics, size, Link(50, 5.0, down_mbit_s=20.0))
    assert uneven["link_alone_ms"] == pytest.approx(2048 * 66 * 8 / 5e3)
    assert timing._link_alone(metrics, size, Link(50)) == {}
    assert timing._link_alone({"step_ms_median": 1.0}, size, Link(50, 20.0)) == {}


def test_the_steadiest_rounds_stand_in_the_metrics() -> None:
    metrics, _, _ = measured()
    assert metrics[OURS]["steady_step_ms"] == metrics[OURS]["step_ms_median"]
    assert metrics[OURS]["steady_spread_pct"] >= 0
