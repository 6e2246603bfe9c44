"""Ranks in memory: who runs when, when parcels arrive, and what is each rank's own."""

from __future__ import annotations

import random
import threading
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from synthgrad.core import ConfigError, StageError
from synthgrad.engines.stages.layout import RankLayout
from synthgrad.engines.stages.transport import (
    Link,
    PeerStatus,
    Receiver,
    Sender,
    Transport,
    outcomes_in_memory,
    run_in_memory,
)
from synthgrad.engines.stages.transport.virtual import VirtualTime

CPU = torch.device("cpu")


def ends(transport: Transport) -> tuple[Sender, Receiver]:
    """Return the ends of a line between two ranks. Takes no time."""
    lines = transport.lines(RankLayout.of(transport.rank, 2, 2), CPU)
    line = lines.below if lines.above is None else lines.above
    assert line is not None
    return line.sender(), line.receiver(2, lambda header: header[1] >= 0, "the link")


def number(receiver: Receiver, timeout_s: float | None) -> int | None:
    found = receiver.get(timeout_s)
    return None if found is None else found.header[1]


# Who runs when


def test_the_one_whose_time_is_least_runs_and_of_two_the_lower() -> None:
    turns: list[tuple[int, float]] = []

    def program(transport: Transport, steps_s: list[float]) -> None:
        for _ in range(3):
            turns.append((transport.rank, transport.clock.now()))
            transport.clock.sleep(steps_s[transport.rank])

    run_in_memory(3, program, [1.0, 0.5, 0.5])
    assert turns == [
        *[(0, 0.0), (1, 0.0), (2, 0.0)],
        *[(1, 0.5), (2, 0.5)],
        *[(0, 1.0), (1, 1.0), (2, 1.0)],
        *[(0, 2.0)],
    ]


def test_computing_takes_no_time_and_nothing_really_sleeps() -> None:
    def program(transport: Transport) -> float:
        torch.randn(100, 100) @ torch.randn(100, 100)
        before = transport.clock.now()
        transport.clock.sleep(1e6)
        transport.clock.sleep(-1.0)
        return before

    found = outcomes_in_memory(2, program)
    assert [o.value for o in found] == [0.0, 0.0]
    assert [o.time_s for o in found] == [1e6, 1e6]


def test_one_thread_runs_at_a_time() -> None:
    inside: list[int] = []
    most: list[int] = []

    def program(transport: Transport) -> None:
        for _ in range(20):
            inside.append(transport.rank)
            most.append(len(inside))
            torch.randn(50, 50) @ torch.randn(50, 50)
            inside.remove(transport.rank)
            transport.clock.sleep(1.0)

    run_in_memory(4, program)
    assert max(most) == 1
    assert len(most) == 80


# When parcels arrive


def test_a_parcel_arrives_after_its_bytes_and_the_delay_and_parcels_queue() -> None:
    def program(transport: Transport) -> list[Any]:
        sender, receiver = ends(transport)
        if transport.rank == 0:
            for k in range(3):
                sender.send((48, k), torch.full((48,), k, dtype=torch.uint8), k)  # 64 bytes with its header
            transport.clock.sleep(4.0)
            sender.send((0, 3), None, 3)  # 16 bytes over an idle link
            return []
        found: list[Any] = []
        for _ in range(4):
            received = receiver.get(100.0)
            assert received is not None
            body = None if received.body is None else received.body.tolist()
            found.append((received.header, body, transport.clock.now()))
        return found

    _, found = run_in_memory(2, program, links=Link(delay_s=0.25, bytes_per_s=128.0))
    assert found == [
        *[([48, k], [k] * 48, 0.25 + 0.5 * (k + 1)) for k in range(3)],
        ([0, 3], None, 4.0 + 16 / 128 + 0.25),
    ]


def test_links_may_differ() -> None:
    def program(transport: Transport) -> float:
        return transport.lines(RankLayout.of(transport.rank, 3, 3), CPU).round_trip_s()

    assert run_in_memory(3, program, links=[Link(0.25), Link(1.0, 64.0)]) == [0.5, 2.25, 0.0]


def test_looking_is_exact_and_takes_no_time() -> None:
    def program(transport: Transport) -> list[Any]:
        sender, receiver = ends(transport)
        if transport.rank == 0:
            transport.clock.sleep(1.0)
            sender.send((0, 7), None, 0)
            return []
        seen: list[Any] = []
        for pause in (0.0, 1.0, 0.5, 0.25, 0.25):
            transport.clock.sleep(pause)
            seen.append((transport.clock.now(), number(receiver, None)))
        return seen

    _, seen = run_in_memory(2, program, links=Link(delay_s=0.75))
    assert seen == [(0.0, None), (1.0, None), (1.5, None), (1.75, 7), (2.0, None)]


@pytest.mark.parametrize(("timeout_s", "woken"), [(0.5, (None, 0.5)), (1.0, (7, 1.0)), (3.0, (7, 1.0))])
def test_who_waits_wakes_at_the_arrival_or_at_the_deadline(
    timeout_s: float, woken: tuple[int | None, float]
) -> None:
    def program(transport: Transport) -> Any:
        sender, receiver = ends(transport)
        if transport.rank == 0:
            sender.send((0, 7), None, 0)
            return None
        return number(receiver, timeout_s), transport.clock.now()

    assert run_in_memory(2, program, links=Link(delay_s=1.0))[1] == woken


def test_what_was_sent_may_change_afterwards() -> None:
    def program(transport: Transport) -> Tensor | None:
        sender, receiver = ends(transport)
        if transport.rank == 0:
            body = torch.ones(16, dtype=torch.uint8)
            sender.send((16, 0), body, 0)
            body.zero_()
            return None
        received = receiver.get(1.0)
        return None if received is None else received.body

    found = run_in_memory(2, program)[1]
    assert found.tolist() == [1] * 16


def test_the_end_is_known_when_it_was_taken() -> None:
    def program(transport: Transport) -> list[bool]:
        sender, receiver = ends(transport)
        sender.send((0, 1), None, 0)
        sender.send((0, -1), None, 0)
        joined = list[bool]()
        for _ in range(2):
            receiver.get(1.0)
            joined.append(receiver.join(1.0))
        return joined

    assert run_in_memory(2, program) == [[False, True]] * 2


# All together


def test_sum_and_broadcast_wait_for_the_last() -> None:
    def program(transport: Transport) -> tuple[float, list[float], float]:
        transport.clock.sleep(float(transport.rank))
        total = transport.sum(torch.tensor(2.0**transport.rank), lambda: None).item()
        value = torch.full((2,), float(transport.rank))
        transport.broadcast(value, 1)
        return total, value.tolist(), transport.clock.now()

    assert run_in_memory(3, program) == [(7.0, [1.0, 1.0], 2.0)] * 3


def test_a_sum_is_ended_by_what_its_check_raises() -> None:
    def program(transport: Transport) -> None:
        if transport.rank == 1:
            transport.clock.sleep(10.0)
            return

        def check() -> None:
            if transport.clock.now() > 2.5:
                raise ValueError("too late")

        transport.sum(torch.zeros(()), check)

    first, second = outcomes_in_memory(2, program)
    assert repr(first.error) == "ValueError('too late')"
    assert first.time_s == 3.0  # it looks once a second
    assert second.error is None


def test_what_is_told_is_known_to_all_of_an_engine_and_not_to_the_next() -> None:
    def program(transport: Transport) -> list[str | None]:
        one, two = transport.peers("v1"), transport.peers("v1")
        one.publish("first", str(transport.rank))
        two.publish(f"from {transport.rank}", "here")
        transport.clock.sleep(1.0)
        one.publish("first", "again")  # the first one stays
        return [one.lookup("first"), two.lookup("first"), two.lookup("from 0"), two.lookup("from 1")]

    assert run_in_memory(2, program) == [["0", None, "here", "here"]] * 2


def test_what_is_known_of_a_rank() -> None:
    def program(transport: Transport) -> list[PeerStatus]:
        peers = transport.peers("v1")
        if transport.rank == 1:
            peers.announce_wait(0)
            transport.clock.sleep(1.0)
            peers.leave()
        if transport.rank:
            return []
        found: list[PeerStatus] = []
        for _ in range(2):
            transport.clock.sleep(0.5)
            found += [peers.status(1), peers.status(2)]
            transport.clock.sleep(1.5)
        return found

    living, gone, parted, still = run_in_memory(3, program)[0]
    assert living == PeerStatus(waits_for=0)
    assert gone.is_gone
    assert parted.has_left
    assert not parted.is_gone
    assert still.silent_s == gone.silent_s + 2.0


# What goes wrong


def test_a_deadlock_names_who_waits_for_what() -> None:
    def program(transport: Transport) -> None:
        if transport.rank == 2:
            return
        if transport.rank == 0:
            transport.broadcast(torch.zeros(()), 1)
        else:
            transport.lines(RankLayout.of(transport.rank, 3, 3), CPU)

    first, second, third = outcomes_in_memory(3, program)
    text = (
        "a deadlock: rank 0 waits for all others at broadcast 1; rank 1 waits for all others at the making of lines 1; "
        "rank 2 has ended"
    )
    for found in (first, second):
        assert isinstance(found.error, StageError)
        assert str(found.error) == text
    assert third.error is None


def test_a_wait_with_a_deadline_is_no_deadlock() -> None:
    def program(transport: Transport) -> tuple[int | None, float]:
        _, receiver = ends(transport)
        return number(receiver, 2.0 + transport.rank), transport.clock.now()

    assert run_in_memory(2, program) == [(None, 2.0), (None, 3.0)]


def test_the_rank_that_failed_is_the_one_whose_error_is_raised() -> None:
    def program(transport: Transport) -> None:
        if transport.rank == 1:
            transport.clock.sleep(1.0)
            raise KeyError("mine")
        transport.broadcast(torch.zeros(()), 1)

    found = outcomes_in_memory(3, program)
    assert isinstance(found[1].error, KeyError)
    assert "raise KeyError" in found[1].trace
    assert found[1].time_s == 1.0
    for k in (0, 2):
        assert "a deadlock" in str(found[k].error)
        assert "rank 1 has ended" in str(found[k].error)
    with pytest.raises(KeyError, match="mine"):
        run_in_memory(3, program)


def test_a_function_that_raises_does_not_keep_the_others_waiting() -> None:
    time, ends = VirtualTime(3), []

    def sleep(rank: int) -> None:
        time.sleep(rank, 1.0)
        if rank == 1:
            raise ValueError("rank 1 fails")
        time.sleep(rank, 1.0)
        ends.append((rank, time.now(rank)))

    with pytest.raises(ValueError, match="rank 1 fails"):
        time.run([partial(sleep, rank) for rank in range(3)])
    assert ends == [(0, 2.0), (2, 2.0)]


def test_an_interrupt_ends_all_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    join, threads = threading.Thread.join, set(threading.enumerate())
    reached = threading.Event()
    ended: list[str] = []

    def interrupted(self: threading.Thread, timeout: float | None = None) -> None:
        if timeout is None and self.name.startswith("synthgrad"):
            reached.wait(10)
            raise KeyboardInterrupt
        join(self, timeout)

    def program(transport: Transport) -> None:
        try:
            while True:
                transport.clock.sleep(1.0)
                reached.set()
        except StageError as error:
            ended.append(str(error))
            raise

    monkeypatch.setattr(threading.Thread, "join", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_in_memory(2, program)
    assert ended == ["the run was interrupted"] * 2
    assert set(threading.enumerate()) == threads


@pytest.mark.parametrize(
    ("num_ranks", "links", "error"),
    [
        (0, Link(), "num_ranks=0"),
        (3, [Link()], "1 links for 3 ranks: expected 2"),
        (2, Link(delay_s=-1.0), "delay_s=-1.0"),
        (2, Link(bytes_per_s=0.0), "bytes_per_s=0.0"),
    ],
)
def test_settings_are_checked(num_ranks: int, links: Any, error: str) -> None:
    with pytest.raises(ConfigError, match=error):
        run_in_memory(num_ranks, lambda transport: None, links=links)


def test_replicas_are_refused() -> None:
    def program(transport: Transport) -> None:
        transport.lines(RankLayout.of(transport.rank, 2, 1, 2), CPU)

    with pytest.raises(ConfigError, match="replicas=2: data parallel training needs torch.distributed"):
        run_in_memory(2, program)


# What is each rank's own


def _draws(transport: Transport, rests: bool) -> list[float]:
    torch.manual_seed(transport.rank)
    random.seed(transport.rank)
    found: list[float] = []
    for _ in range(4):
        found += [torch.rand(()).item(), random.random()]
        if rests:
            transport.clock.sleep(1.0)
    return found


def test_random_numbers_are_those_that_each_would_draw_alone() -> None:
    assert run_in_memory(3, _draws, True) == run_in_memory(3, _draws, False)


def test_random_numbers_begin_as_they_are_and_are_as_they_were() -> None:
    torch.manual_seed(5)
    random.seed(5)
    begun = torch.rand(2).tolist(), random.random()
    torch.manual_seed(5)
    random.seed(5)

    def program(transport: Transport) -> Any:
        transport.clock.sleep(1.0)
        return torch.rand(2).tolist(), random.random()

    assert run_in_memory(2, program) == [begun, begun]
    assert (torch.rand(2).tolist(), random.random()) == begun


def test_the_default_dtype_is_each_ranks_own() -> None:
    def program(transport: Transport) -> list[torch.dtype]:
        found = [torch.zeros(()).dtype]
        if transport.rank == 1:
            torch.set_default_dtype(torch.float64)
        for _ in range(2):
            transport.clock.sleep(1.0)
            found.append(torch.zeros(()).dtype)
        return found

    assert run_in_memory(2, program) == [[torch.float32] * 3, [torch.float32] + [torch.float64] * 2]
    assert torch.get_default_dtype() == torch.float32


def test_a_setting_that_is_changed_for_a_while_is_changed_for_one_rank() -> None:
    def program(transport: Transport) -> list[bool]:
        found: list[bool] = []
        before = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(transport.rank == 1)
        for _ in range(2):
            transport.clock.sleep(1.0)
            found.append(torch.backends.mha.get_fastpath_enabled())
        torch.backends.mha.set_fastpath_enabled(before)
        return found

    before = torch.backends.mha.get_fastpath_enabled()
    assert run_in_memory(3, program) == [[False] * 2, [True] * 2, [False] * 2]
    assert torch.backends.mha.get_fastpath_enabled() == before


def test_gradients_are_recorded_in_every_rank() -> None:
    def program(transport: Transport) -> tuple[bool, bool]:
        if transport.rank == 0:
            with torch.no_grad():
                transport.clock.sleep(1.0)
                return torch.is_grad_enabled(), torch.is_inference_mode_enabled()
        transport.clock.sleep(0.5)
        return torch.is_grad_enabled(), torch.is_inference_mode_enabled()

    assert run_in_memory(2, program) == [(False, False), (True, False)]
