"""Taking turns: what is timed, what becomes of steps that fail, and what ratios are of."""

from __future__ import annotations

import pytest

from synthgrad.lab.bench import turns
from synthgrad.lab.bench.turns import TimedStep, median_and_spread, ratios, take_turns, warmed_up


class Clock:
    """A clock that stands still but for the steps."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(turns, "time", found)
    return found


def test_a_warm_step_takes_about_its_share_of_a_round(clock: Clock) -> None:
    calls = []

    def step() -> None:
        calls.append(1)
        clock.now += 0.5 if len(calls) < 3 else 0.01  # the first steps are slow

    assert warmed_up(step, 0.2, "cpu").per_round == 20
    assert len(calls) == turns.WARM_UP_STEPS


def test_a_slow_step_is_warm_after_a_few(clock: Clock) -> None:
    calls = []

    def step() -> None:
        calls.append(1)
        clock.now += 3.0

    assert warmed_up(step, 0.2, "cpu").per_round == 1
    assert len(calls) == 4


def test_times_are_means_over_a_round(clock: Clock) -> None:
    def step(seconds: float) -> None:
        clock.now += seconds

    timed = {"a": TimedStep(lambda: step(0.002), 5), "b": TimedStep(lambda: step(0.5), 1)}
    assert take_turns(timed, 3, "cpu") == {}
    assert timed["a"].times_ms == pytest.approx([2.0] * 3)
    assert timed["b"].times_ms == pytest.approx([500.0] * 3)


def test_what_fails_is_dropped_and_the_others_go_on(clock: Clock) -> None:
    left = [3]

    def failing() -> None:
        left[0] -= 1
        if not left[0]:
            raise RuntimeError("no more\nsteps")

    timed = {"a": TimedStep(failing, 2), "b": TimedStep(lambda: None, 1)}
    assert take_turns(timed, 4, "cpu") == {"a": "RuntimeError: no more"}
    assert list(timed) == ["b"]
    assert len(timed["b"].times_ms) == 4


def test_a_ratio_is_taken_in_each_round() -> None:
    found = ratios([2.0, 4.0, 12.0], [1.0, 4.0, 6.0], "peer")
    assert (found["step_ms_median"], found["ratio_to_peer"]) == (4.0, 2.0)
    assert found["ratio_to_peer_p10"] == pytest.approx(1.2)
    assert found["ratio_to_peer_p90"] == pytest.approx(2.0)


def test_median_and_spread() -> None:
    assert median_and_spread(list(range(11))) == (5, 1, 9)
    assert median_and_spread([2.0]) == (2, 2, 2)
