"""Stages in real processes over gloo: what only they can show. All else is tested in memory."""

from __future__ import annotations

import pytest
import torch

from synthgrad.engines import Stages
from synthgrad.engines.stages.transport import distributed
from tests.engines import test_ties
from tests.engines.stages import programs
from tests.engines.stages.places import Place
from tests.engines.stages.processes import Processes
from tests.engines.stages.test_stages import same


def _trained(place: Place, world: int, rule: str, options: dict[str, object]) -> dict[str, object]:
    return programs.trained(place, world, rule, 12, **options)


@pytest.mark.parametrize(("rule", "lag"), [("cdni", 3), ("true", 0)])
def test_weights_are_bit_by_bit_those_of_the_in_process_engine(
    two_processes: Processes, rule: str, lag: int
) -> None:
    found = two_processes.run(_trained, 2, rule, {"window": lag, "deterministic": True})
    expected = programs.in_process(2, rule, 12, lag)
    for outcome in found:
        same(outcome["weights"], expected["weights"])
    assert found[1]["losses"] == expected["losses"]
    assert found[0]["losses"] == [None] * 12
    torch.testing.assert_close(found[1]["output"], expected["output"], rtol=0, atol=0)


@pytest.mark.slow(reason="starts four processes, each of which loads PyTorch")
def test_four_stages_too(four_processes: Processes) -> None:
    found = four_processes.run(_trained, 4, "cdni", {"window": 1, "deterministic": True})
    expected = programs.in_process(4, "cdni", 12, 1)
    for outcome in found:
        same(outcome["weights"], expected["weights"])


def test_other_networks(two_processes: Processes) -> None:
    options = {"kind": "convolutional", "window": 1, "deterministic": True}
    expected = programs.in_process(2, "dni", 12, 1, "convolutional")
    for outcome in two_processes.run(_trained, 2, "dni", options):
        same(outcome["weights"], expected["weights"])


def test_targets_can_travel(two_processes: Processes) -> None:
    found = two_processes.run(programs.with_travelling_targets, 8)
    same(found[0], programs.in_process(2, "cdni", 8, 1)["weights"])


def test_a_narrower_wire(two_processes: Processes) -> None:
    options = {"window": 1, "deterministic": True, "wire_dtype": torch.bfloat16}
    first, last = two_processes.run(_trained, 2, "cdni", options)
    # Upwards 10 × 8 numbers of two bytes each step, and 10 × 8 more to predict; downwards messages and the losses of examples.
    header = 8 * (8 + 2 + 1)
    assert first["sent_bytes"] == 13 * (160 + header)
    assert last["sent_bytes"] == 12 * (160 + 80 + header)


def _tied(place: Place, world: int, number: int) -> dict[str, torch.Tensor]:
    return test_ties.stage(distributed(), test_ties.local_loss, number, cuts=world - 1, window=2, tied_lag=3)[
        0
    ]


@pytest.mark.parametrize("world", [2, 4])
def test_tied_weights_have_a_line_of_their_own(
    two_processes: Processes, four_processes: Processes, world: int
) -> None:
    expected = test_ties.in_process(test_ties.local_loss, 2, 9, cuts=world - 1, tied_lag=3)
    processes = two_processes if world == 2 else four_processes
    for weights in processes.run(_tied, world, 9):
        same(weights, expected)


def test_random_delays_end_without_deadlock(four_processes: Processes) -> None:
    for windows in four_processes.run(programs.delayed, 4, 7, 60, 0.008)[:3]:
        assert all(2 <= w <= 64 for w in windows)


def test_a_rank_that_raises_stops_the_others_with_its_cause(four_processes: Processes) -> None:
    found = four_processes.outcomes(programs.raises_at, 4, 1, 5)
    assert (found[1].error or "").startswith("ValueError: the data is on fire")
    for rank in (0, 2, 3):
        assert found[rank].error == "StageError: stage 1 (rank 1) stopped: ValueError: the data is on fire"
    # … and leaves them able to work
    assert four_processes.run(programs.delayed, 4, 0, 3, 0.0)


def _hangs(place: Place) -> None:
    net = programs.network(2, "cdni")
    with Stages(net, programs.per_example, programs.adam, window=2, timeout_s=1) as stages:
        for k, (x, y) in enumerate(programs.batches(12)):
            if place.rank == 1 and k == 4:
                place.sleep(3)
            stages.step(x if place.rank == 0 else None, y)


def test_a_stage_that_hangs_is_given_up(two_processes: Processes) -> None:
    found = two_processes.outcomes(_hangs)
    assert "within 1 s" in "".join(outcome.error or "" for outcome in found)
    assert all(outcome.error for outcome in found)


def _writes_nonsense(place: Place) -> None:
    net = programs.network(2, "cdni")
    with Stages(net, programs.per_example, programs.adam, window=2, timeout_s=20) as stages:
        if place.rank == 1:
            below = stages._links.below
            assert below is not None
            below.outgoing.sender._direction.send(torch.tensor([1, 0, -5, 9, 0, 0]), 0).wait()  # pyright: ignore
        for x, y in programs.batches(12):
            stages.step(x if place.rank == 0 else None, y)


def test_a_header_that_nobody_agreed_upon_is_refused(two_processes: Processes) -> None:
    assert "which nobody agreed upon" in (two_processes.outcomes(_writes_nonsense)[0].error or "")


def _trains(place: Place, drains: bool) -> dict[str, torch.Tensor]:
    net = programs.network(2, "cdni")
    with Stages(net, programs.per_example, programs.adam, window=3, deterministic=True) as stages:
        for k, (x, y) in enumerate(programs.batches(12)):
            stages.step(x if place.rank == 0 else None, y)
            if drains and k % 3 == 1:
                stages._links.drain()
        stages.gather()
    return programs.weights(net)


def test_a_drained_link_goes_on_as_if_nothing_had_been(two_processes: Processes) -> None:
    plain, drained = (two_processes.run(_trains, drains)[0] for drains in (False, True))
    same(drained, plain)
