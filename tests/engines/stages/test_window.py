"""How far a stage may run ahead: round trip over the slower step, and two."""

from __future__ import annotations

import pytest

from synthgrad.engines.stages.window import MOST, Window


def window(round_trip_s: float, own_s: float = 0.0, above_us: int = 0) -> int:
    found = Window(None, round_trip_s)
    if own_s:
        found.record_step(own_s)
    if above_us:
        found.record_above(above_us)
    return found.size


@pytest.mark.parametrize(
    ("round_trip_s", "own_s", "above_us", "steps"),
    [
        (0.049, 0.010, 0, 7),  # ⌈4.9⌉ + 2
        (0.051, 0.010, 0, 8),  # ⌈5.1⌉ + 2
        (0.001, 0.010, 0, 3),
        (0.0, 0.010, 0, 2),  # a link without delay
        (0.049, 0.010, 26_000, 4),  # the stage above takes longer: running further ahead of it gains nothing
        (0.049, 0.010, 2_000, 7),  # it is faster: this stage's own step counts
        (0.049, 0.0, 10_000, 7),  # what the stage above has said counts before this one has taken a step
        (10.0, 0.001, 0, MOST),
        (10.0, 0.001, 500_000, 22),
    ],
)
def test_it_is_the_round_trip_over_the_slower_step(
    round_trip_s: float, own_s: float, above_us: int, steps: int
) -> None:
    assert window(round_trip_s, own_s, above_us) == steps


def test_before_anything_is_known_it_is_two() -> None:
    assert window(1.0) == 2


def test_a_size_that_is_given_stays() -> None:
    found = Window(5, 1.0)
    found.record_step(0.001)
    found.record_above(1_000)
    assert found.size == 5
    assert Window(0, 1.0).size == 0


def test_a_step_is_the_median_of_the_last_sixteen() -> None:
    found = Window(None, 0.099)
    for _ in range(15):
        found.record_step(0.010)
    found.record_step(5.0)  # one step that was held up
    assert found.busy_s == 0.010
    assert found.size == 12
    for _ in range(9):
        found.record_step(0.020)  # nine of sixteen
    assert found.busy_s == 0.020
    assert found.size == 7


def test_what_the_stage_above_says_last_counts() -> None:
    found = Window(None, 0.099)
    found.record_step(0.010)
    sizes = list[int]()
    for above_us in (51_000, 21_000, 1_000):
        found.record_above(above_us)
        sizes.append(found.size)
    assert sizes == [4, 7, 12]
