"""The relay with sockets in place of devices: who gets a frame and when, and that the relay sleeps and ends."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from synthgrad.lab.wan.relay import main
from synthgrad.lab.wan.relay.frames import HEADER_BYTES, address_of
from synthgrad.lab.wan.relay.main import Relay

_NUM = 3


@pytest.fixture
def ends() -> Iterator[tuple[list[socket.socket], list[int]]]:
    """Return the workers' sockets, and the descriptors of the relay's ends."""
    with ExitStack() as stack:
        pairs = [socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM) for _ in range(_NUM)]
        for near, far in pairs:
            stack.enter_context(near).setblocking(False)
            stack.enter_context(far).setblocking(False)
        yield [near for near, _ in pairs], [far.fileno() for _, far in pairs]


def frame(to: bytes, text: bytes) -> bytes:
    return bytes(HEADER_BYTES) + to + bytes(8) + text


def received(worker: socket.socket) -> list[bytes]:
    found: list[bytes] = []
    while True:
        try:
            found.append(worker.recv(2000)[HEADER_BYTES + 14 :])
        except BlockingIOError:
            return found


def pass_all(relay: Relay, taps: list[int]) -> None:
    for tap in taps:
        relay.collect(tap)
    relay.deliver()


def test_a_frame_reaches_the_worker_that_it_is_for(ends: Any) -> None:
    workers, taps = ends
    relay = Relay(taps, 0.0, (None, None), (10_000, 10_000))
    workers[0].send(frame(address_of(2), b"one"))
    workers[0].send(frame(address_of(2), b"two"))
    workers[2].send(frame(address_of(1), b"three"))
    pass_all(relay, taps)
    assert [received(worker) for worker in workers] == [[], [b"three"], [b"one", b"two"]]
    counts = relay.counts()
    assert (counts["num_frames"], counts["wire_bytes"], counts["num_dropped"]) == (3, 53, 0)
    assert 0 <= counts["latest_s"] <= counts["late_s"]


def test_a_broadcast_reaches_all_others_and_a_stranger_nobody(ends: Any) -> None:
    workers, taps = ends
    relay = Relay(taps, 0.0, (None, None), (10_000, 10_000))
    workers[1].send(frame(b"\xff" * 6, b"all"))
    workers[1].send(frame(address_of(9), b"stranger"))
    workers[1].send(frame(address_of(1), b"myself"))
    pass_all(relay, taps)
    assert [received(worker) for worker in workers] == [[b"all"], [], [b"all"]]


def test_a_slow_line_holds_up_no_other(ends: Any) -> None:
    workers, taps = ends
    relay = Relay(taps, 0.0, (20.0, 20.0), (100, 100))
    for text in (b"a", b"b"):
        workers[0].send(frame(address_of(1), text * 60))  # 74 bytes: 3.7 s
    workers[2].send(frame(address_of(1), b""))  # 14 bytes: 0.7 s
    for tap in taps:
        relay.collect(tap)
    assert relay.counts()["num_dropped"] == 1
    left = relay.deliver() - time.monotonic()
    assert 0 < left <= 0.7
    assert received(workers[1]) == []


def test_it_sleeps_answers_and_ends(ends: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    workers, taps = ends
    said: list[dict[str, Any]] = []
    monkeypatch.setattr(main, "send_line", said.append)
    control, ask = os.pipe()
    relay = Relay(taps, 0.05, (None, None), (10_000, 10_000))
    thread = threading.Thread(target=relay.run, args=(control,))
    try:
        workers[0].setblocking(True)
        workers[1].setblocking(True)
        workers[1].settimeout(20)
        thread.start()
        start, cpu = time.monotonic(), time.process_time()
        for _ in range(4):
            workers[0].send(frame(address_of(1), b"x"))
            workers[1].recv(2000)
        assert time.monotonic() - start >= 4 * 0.05
        assert time.process_time() - cpu < 0.15, "it did not sleep"
        os.write(ask, b"\n")
    finally:
        os.close(ask)
        thread.join(20)
        os.close(control)
    assert not thread.is_alive()
    assert [counts["num_frames"] for counts in said] == [4]


def test_what_it_says_is_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    main.send_line({"error": "two\nlines"})
    out = capfd.readouterr().out
    assert out.count("\n") == 1
    assert json.loads(out) == {"error": "two\nlines"}
