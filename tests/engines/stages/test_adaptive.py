"""What follows the link and the other stages: windows, waiting, answers that are skipped. In virtual time, to the number."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from synthgrad.engines import Stages
from synthgrad.engines.stages import Link
from tests.engines.stages import programs
from tests.engines.stages.places import InMemory, Place

STEPS = 100


def _windows(place: Place, step_s: tuple[float, ...], options: dict[str, Any]) -> dict[str, Any]:
    """Train, with steps that last so long, by rank; return windows, and how long was worked and waited."""
    net = programs.network(len(step_s), "cdni")
    with Stages(
        net, programs.per_example, programs.adam, transport=place.transport, timeout_s=20, **options
    ) as stages:
        stages.module.register_forward_pre_hook(lambda *_: place.sleep(step_s[place.rank]))
        start, windows = place.now(), list[int]()
        for x, y in programs.batches(STEPS):
            stages.step(x if place.rank == 0 else None, y)
            windows.append(stages.window)
        return {
            **{"windows": windows, "took_s": place.now() - start, "round_trip_s": stages.round_trip_s},
            **{"waited_s": stages.waited_s, "busy_s": stages.busy_s, "weights": programs.weights(net)},
        }


@pytest.mark.parametrize(
    ("delay_s", "step_s", "window"),
    [(1 / 8, 1 / 32, 10), (1 / 8, 1 / 64, 18), (0.0, 1 / 32, 2), (1 / 2, 1 / 32, 34), (1.0, 1 / 64, 64)],
)
def test_the_window_is_the_round_trip_over_the_step_and_two(
    two: InMemory, delay_s: float, step_s: float, window: int
) -> None:
    first, last = two.over(Link(delay_s)).run(_windows, (step_s, step_s), {})
    assert first["round_trip_s"] == 2 * delay_s
    assert first["windows"] == [window] * STEPS
    # Wide enough, it never waits; at most 64 it is done with 65 steps before the answer to the first has come: that takes a step
    # below, the way up, a step above and the way down.
    assert first["waited_s"] == (2 * delay_s + 2 * step_s - 65 * step_s if window == 64 else 0)
    assert first["busy_s"] == last["busy_s"] == STEPS * step_s


def test_a_stage_does_not_run_farther_ahead_of_a_slow_one_than_it_must(three: InMemory) -> None:
    first, second, last = three.over(Link(delay_s=1 / 2)).run(_windows, (1 / 256, 1 / 32, 0), {})
    # By its own step it would be 64 steps ahead, and is until the stage above has said that a step takes 1/32 there. It says so
    # with the answer to its second batch, of which the lower stage hears when it is 64 steps ahead of it.
    assert first["windows"] == [64] * 65 + [34] * 35
    assert second["windows"] == [34] * STEPS
    assert last["windows"] == [2] * STEPS
    # The slow one waits for the first batch only, and all are held to its pace.
    assert second["waited_s"] == 1 / 256
    assert second["busy_s"] == STEPS / 32


def test_a_window_that_is_too_narrow_costs_a_round_trip(two: InMemory) -> None:
    first, last = two.over(Link(delay_s=1 / 8)).run(_windows, (1 / 64, 1 / 64), {"window": 1})
    # Two batches go up, a step apart, and after a step above and the way back their answers: two steps for a round trip and two.
    assert first["took_s"] == STEPS / 2 * (1 / 4 + 2 / 64)
    assert first["busy_s"] == STEPS / 64
    assert first["waited_s"] == first["took_s"] - first["busy_s"]


def test_the_rate_of_a_link_counts(two: InMemory) -> None:
    # A parcel has a header of 8 numbers and 3 of shapes. Above it 10 × 8 numbers of 8 bytes go up, and with the losses of the
    # examples down; so the way down is the narrower one, and never idle once the first batch has come up.
    rate, header = 4096.0, 8 * (8 + 3)
    up, down = header + 10 * 8 * 8, header + 10 * (8 + 1) * 8
    first, _ = two.over(Link(0.0, rate)).run(_windows, (0.0, 0.0), {"window": 2})
    assert first["round_trip_s"] == 2 * 8 / rate
    assert first["took_s"] == first["waited_s"] == (up + (STEPS - 2) * down) / rate


def test_two_runs_are_alike_to_the_last_bit(three: InMemory) -> None:
    links = Link(1 / 16, 65_536.0), Link(1 / 4, 32_768.0)
    one, two = (
        three.over(*links).run(_windows, (1 / 64, 1 / 32, 1 / 128), {"observe_prob": 0.5}) for _ in range(2)
    )
    for a, b in zip(one, two, strict=True):
        assert all(torch.equal(a["weights"][n], t) for n, t in b["weights"].items())
        assert {k: v for k, v in a.items() if k != "weights"} == {
            k: v for k, v in b.items() if k != "weights"
        }
