from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from synthgrad.core import ConfigError
from synthgrad.planner.costs import StageCost
from synthgrad.planner.cuts import all_cuts, balanced_cuts, slowest_s
from synthgrad.planner.table import CostTable, ModuleCost


def table(*costs: StageCost) -> CostTable:
    names = [*(f"layer{k + 1}" for k in range(len(costs) - 1)), "output"]
    return CostTable(tuple(map(ModuleCost, names, costs)), batch_size=32)


def timed(*seconds: float, size: float = 0) -> CostTable:
    return table(*(StageCost(forward_s=t, backward_s=0, output_bytes=size) for t in seconds))


few = st.integers(0, 5).map(float)  # small whole numbers, so that there are ties and sums are exact
costs = st.builds(
    StageCost,
    forward_s=few,
    backward_s=few,
    optimizer_s=few,
    output_bytes=few,
    credit_s=few,
    observe_s=few,
    local_s=few,
)


def by_hand(
    whole: CostTable, cuts: list[str], speeds: list[float], link_s: Callable[[float], float], decoupled: bool
) -> float:
    """The slowest stage or wire, from the rows themselves."""
    ends = [0, *(whole.names.index(name) + 1 for name in cuts), len(whole.modules)]
    slowest = 0.0
    for k, (a, b) in enumerate(pairwise(ends)):
        parts = [m.cost for m in whole.modules[a:b]]
        time = sum(c.forward_s + c.backward_s + c.optimizer_s for c in parts)
        if k < len(cuts):
            last = parts[-1]
            time += (last.credit_s + last.observe_s + last.local_s) * decoupled
            slowest = max(slowest, link_s(last.output_bytes))
        slowest = max(slowest, time / speeds[k])
    return slowest


def crossing(whole: CostTable, cuts: list[str]) -> float:
    return sum(stage.output_bytes for stage in whole.stages(cuts))


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_no_other_cuts_are_faster_and_of_those_as_fast_none_has_fewer_bytes(data: st.DataObject) -> None:
    whole = table(*data.draw(st.lists(costs, min_size=2, max_size=7)))
    stages = data.draw(st.integers(2, len(whole.modules)))
    speeds = data.draw(st.lists(st.sampled_from([0.5, 1.0, 2.0]), min_size=stages, max_size=stages))
    decoupled = data.draw(st.booleans())
    rate = data.draw(st.sampled_from([0.0, 1.0, 4.0]))

    def link_s(size: float) -> float:
        return rate * size

    found = balanced_cuts(whole, stages, speeds=speeds, link_s=link_s, decoupled=decoupled)
    every = all_cuts(whole, stages)
    assert found in every
    times = [by_hand(whole, cuts, speeds, link_s, decoupled) for cuts in every]
    assert by_hand(whole, found, speeds, link_s, decoupled) == min(times)
    as_fast = [cuts for cuts, time in zip(every, times, strict=True) if time == min(times)]
    assert crossing(whole, found) == min(crossing(whole, cuts) for cuts in as_fast)
    for cuts, time in zip(every, times, strict=True):
        assert slowest_s(whole, cuts, speeds=speeds, link_s=link_s, decoupled=decoupled) == time


def test_the_sums_of_uneven_floats_are_those_of_brute_force() -> None:
    whole = timed(0.1, 0.2, 0.3, 0.1, 0.7, 0.05, 0.15, 0.35)
    for stages in range(2, 9):
        best = min(slowest_s(whole, cuts) for cuts in all_cuts(whole, stages))
        assert slowest_s(whole, balanced_cuts(whole, stages)) == best


def test_a_slow_machine_gets_less() -> None:
    whole = timed(*[1.0] * 6)
    assert balanced_cuts(whole, 2) == ["layer3"]
    assert balanced_cuts(whole, 2, speeds=[1, 2]) == ["layer2"]
    assert balanced_cuts(whole, 2, speeds=[2, 1]) == ["layer4"]


def test_the_rule_counts_in_every_stage_but_the_last_one() -> None:
    whole = table(*(StageCost(1.0, 0.0, credit_s=0.5, observe_s=1.0, local_s=0.5) for _ in range(6)))
    assert balanced_cuts(whole, 2) == ["layer2"]  # 2 + 2 against 4
    assert balanced_cuts(whole, 2, decoupled=False) == ["layer3"]


def test_a_wire_that_is_slower_than_every_stage_decides() -> None:
    sizes = [8.0, 8.0, 8.0, 2.0, 8.0, 0.0]
    whole = table(*(StageCost(1.0, 0.0, output_bytes=size) for size in sizes))
    assert balanced_cuts(whole, 2) == ["layer3"]
    assert balanced_cuts(whole, 2, link_s=lambda size: 2 * size) == ["layer4"]


def test_of_cuts_as_fast_those_with_fewer_bytes_are_taken_and_of_these_the_even_ones() -> None:
    first = table(*(StageCost(t, 0.0, output_bytes=b) for t, b in ((1, 9), (0, 4), (0, 9), (1, 0))))
    assert balanced_cuts(first, 2) == ["layer2"]
    even = timed(*[1.0] * 4, size=3)
    assert balanced_cuts(even, 2, link_s=lambda size: 10 + size) == ["layer2"]  # the wire takes 13 anyway


def test_many_modules_are_cut_into_as_many_stages() -> None:
    whole = timed(*[1.0] * 64)
    assert balanced_cuts(whole, 64) == whole.names
    assert slowest_s(whole, balanced_cuts(whole, 16)) == 4


@pytest.mark.parametrize("cut", [balanced_cuts, all_cuts])
def test_a_model_that_cannot_be_cut_so_often_is_refused(cut: Callable[[CostTable, int], object]) -> None:
    whole = timed(1, 1, 1)
    for stages in (1, 0, -2, 2.0, True):
        with pytest.raises(
            ConfigError, match="stages=.*: expected the number of stages between cuts, at least 2"
        ):
            cut(whole, stages)  # type: ignore[arg-type]
    with pytest.raises(
        ConfigError,
        match=r"4 stages of a model .* into 3 at most: .* after layer1, layer2; expected 2 to 3\.",
    ):
        cut(whole, 4)
    with pytest.raises(ConfigError, match="it has no cut"):
        cut(timed(1), 2)


@pytest.mark.parametrize(
    ("speeds", "says"),
    [
        ([1.0], "1 speeds for 2 stages: expected one for each stage"),
        ([1.0, 2.0, 3.0], "3 speeds for 2 stages"),
        ([1.0, 0.0], "speed 0.0: expected a number over 0"),
        ([1.0, -1], "speed -1: expected"),
        ([float("nan"), 1], "speed nan: expected"),
        ([float("inf"), 1], "speed inf: expected"),
        (["fast", 1], "speed 'fast': expected"),
    ],
)
def test_speeds_that_do_not_fit_are_refused(speeds: list[float], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        balanced_cuts(timed(1, 1, 1), 2, speeds=speeds)


@pytest.mark.parametrize("answer", [-1.0, float("nan"), None])
def test_a_link_that_tells_no_time_is_refused(answer: float) -> None:
    with pytest.raises(ConfigError, match=r"link_s\(8\) returned .*: expected the seconds"):
        balanced_cuts(timed(1, 1, 1, size=8), 2, link_s=lambda size: answer)
