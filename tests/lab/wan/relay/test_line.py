"""When a frame arrives: delay, rate, order, and what a full queue drops."""

from __future__ import annotations

import math

import pytest

from synthgrad.lab.wan.relay.line import Line


def arrivals(line: Line) -> list[tuple[float, bytes]]:
    found: list[tuple[float, bytes]] = []
    while (due := line.due()) < math.inf:
        found.append((due, line.pop()))
    return found


def test_without_a_rate_every_frame_takes_the_delay() -> None:
    line = Line(0.5, None, 1000)
    assert line.due() == math.inf
    assert all([line.offer(b"a", 1, 10.0), line.offer(b"b", 1, 10.25)])
    assert arrivals(line) == [(10.5, b"a"), (10.75, b"b")]


def test_frames_leave_one_after_the_other() -> None:
    line = Line(1.0, 100.0, 1000)
    assert line.offer(b"a", 50, 0.0)  # leaves by 0.5
    assert line.offer(b"b", 100, 0.25)  # waits 0.25, leaves by 1.5
    assert line.offer(b"c", 25, 4.0)  # finds the line free
    assert arrivals(line) == [(1.5, b"a"), (2.5, b"b"), (5.25, b"c")]


def test_a_full_queue_drops_and_delays_nobody_by_it() -> None:
    line = Line(0.0, 100.0, 150)
    assert line.offer(b"a", 100, 0.0)
    assert line.offer(b"b", 50, 0.0)  # 100 wait
    assert not line.offer(b"c", 1, 0.0)  # 150 wait
    assert line.offer(b"d", 1, 0.5)  # 100 wait
    assert arrivals(line) == [(1.0, b"a"), (1.5, b"b"), (1.51, b"d")]


def test_a_frame_longer_than_the_queue_passes_a_free_line() -> None:
    assert Line(0.0, 100.0, 10).offer(b"a", 100, 0.0)
    assert Line(0.0, None, 10).offer(b"a", 100, 0.0)


def test_without_a_rate_the_limit_holds_for_what_is_under_way() -> None:
    line = Line(9.0, None, 100)
    assert line.offer(b"a", 100, 0.0)
    assert not line.offer(b"b", 1, 1.0)
    assert line.pop() == b"a"
    assert line.offer(b"c", 1, 1.0)


def test_nothing_to_take() -> None:
    with pytest.raises(IndexError):
        Line(0.0, None, 1).pop()


def test_jitter_adds_to_the_delay_and_keeps_the_order() -> None:
    line, twin, other = (Line(1.0, None, 1 << 20, 0.5, seed=seed) for seed in (1, 1, 2))
    for made in (line, twin, other):
        for n in range(200):
            assert made.offer(bytes([n]), 1, n * 0.01)
    found = arrivals(line)
    assert [frame for _, frame in found] == [bytes([n]) for n in range(200)]
    late = [due - (n * 0.01 + 1.0) for n, (due, _) in enumerate(found)]
    assert all(0 <= x <= 0.5 for x in late)
    assert max(late) > 0.4
    assert [due for due, _ in found] == sorted(due for due, _ in found)
    assert arrivals(twin) == found
    assert arrivals(other) != found
