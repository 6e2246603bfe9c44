"""How processes meet, and what they then know of each other: here with threads, over real sockets."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch.distributed as dist

from synthgrad.core import ConfigError, StageError
from synthgrad.engines.stages.transport.connections import Connections
from synthgrad.engines.stages.transport.rendezvous import rendezvous
from synthgrad.engines.stages.transport.timeout import call_with_timeout


def _pair() -> tuple[Connections, Connections]:
    one, two = socket.socketpair()
    return Connections({1: one}), Connections({0: two})


def _soon(true: Callable[[], Any], timeout_s: float = 5.0) -> bool:
    until = time.monotonic() + timeout_s
    while not true():
        if time.monotonic() > until:
            return False
        time.sleep(0.01)
    return True


def test_what_is_told_comes_and_the_first_text_under_a_name_stays() -> None:
    one, two = _pair()
    long = "x" * 3_000_000  # more than a socket holds
    one.publish("network", long)
    assert _soon(lambda: two.lookup("network") == long)
    two.publish("network", "again")
    two.publish("last", "here")
    assert _soon(lambda: one.lookup("last") == "here")
    assert one.lookup("network") == two.lookup("network") == long
    assert one.lookup("nothing") is None
    one.leave()
    two.leave()


def test_a_rank_that_parts_is_not_gone_and_its_last_words_come() -> None:
    one, two = _pair()
    one.publish("cause", "stage 0 stopped")
    one.leave()
    assert _soon(lambda: two.status(0).has_left)
    assert two.lookup("cause") == "stage 0 stopped"
    assert not two.status(0).is_gone
    two.leave()
    two.leave()


def test_a_connection_that_ends_without_a_word_is_noticed_at_once() -> None:
    end, other = socket.socketpair()
    peers = Connections({1: end})
    assert not peers.status(1).is_gone
    other.close()
    assert _soon(lambda: peers.status(1).is_gone, 1.0)
    assert peers.status(1).silent_s < 1.0
    peers.leave()


def test_a_silent_rank_is_told_from_one_that_beats() -> None:
    one, two = _pair()
    end, frozen = socket.socketpair()
    alone = Connections({1: end})
    two.announce_wait(0)
    time.sleep(1.2)
    assert one.status(1).silent_s < 0.6
    assert one.status(1).waits_for == 0
    assert 1.0 < alone.status(1).silent_s < 2.0
    begun = time.monotonic()
    alone.leave()  # does not wait for whoever does not read
    assert time.monotonic() - begun < 0.5
    frozen.close()
    one.leave()
    two.leave()


def test_parting_ends_threads_and_closes_sockets() -> None:
    before = set(threading.enumerate())
    one, two = _pair()
    assert set(threading.enumerate()) != before
    one.leave()
    two.leave()
    assert set(threading.enumerate()) == before


# Meeting


def _meet(greetings: list[str | None], timeout_s: float = 10.0, store: Any = None) -> list[Any]:
    """Have ranks meet, each in a thread; return what came of it. None for one that does not come."""
    store = dist.HashStore() if store is None else store
    found: list[Any] = [None] * len(greetings)

    def run(rank: int, greeting: str) -> None:
        try:
            found[rank] = rendezvous(store, rank, len(greetings), greeting, timeout_s)
        except (ConfigError, StageError) as error:
            found[rank] = error

    threads = [
        threading.Thread(target=run, args=(rank, greeting))
        for rank, greeting in enumerate(greetings)
        if greeting is not None
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def test_all_ranks_meet_and_tell_all_others() -> None:
    ranks = _meet(["v1"] * 4)
    for rank, peers in enumerate(ranks):
        peers.publish(f"from {rank}", str(rank))
    for peers in ranks:
        assert _soon(lambda peers=peers: all(peers.lookup(f"from {k}") == str(k) for k in range(4)))
    for peers in ranks:
        peers.leave()


def test_another_version_is_refused_by_name_in_every_rank() -> None:
    found = _meet(
        ["synthgrad 2.0 (wire format 3)", "synthgrad 2.0 (wire format 3)", "synthgrad 1.9 (wire format 2)"]
    )
    assert all(isinstance(error, ConfigError) for error in found)
    assert str(found[0]) == (
        "rank 2 runs synthgrad 1.9 (wire format 2), and rank 0 synthgrad 2.0 (wire format 3): install the same version for "
        "all processes"
    )


def test_a_rank_that_does_not_come_is_named_in_time() -> None:
    begun = time.monotonic()
    found = _meet(["v1", None, "v1"], 0.5)
    assert time.monotonic() - begun < 1.5
    for k in (0, 2):
        assert str(found[k]).startswith("rank 1 did not come to the handshake within 0.5 s")


class _Nosy(dist.HashStore):
    """A store that is read by strangers: whoever listens gets visitors that say what they should not, or nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.visits: list[socket.socket] = []

    def visit(self, port: int) -> None:
        for words in (b"", b"let me in 1\n", b"x" * 4096, b"0000 1\n", b"\xff\xfe\n"):
            visitor = socket.create_connection(("127.0.0.1", port))
            visitor.sendall(words)
            self.visits.append(visitor)


def test_strangers_are_sent_away() -> None:
    import json

    store = _Nosy()

    def stray() -> None:
        if _soon(lambda: store.check(["0"])):
            store.visit(json.loads(store.get("0"))["port"])

    thread = threading.Thread(target=stray)
    thread.start()
    late: list[Any] = []

    def come() -> None:
        thread.join()
        late.append(rendezvous(store, 1, 2, "v1", 10.0))

    other = threading.Thread(target=come)
    other.start()
    peers = rendezvous(store, 0, 2, "v1", 10.0)
    other.join()
    peers.publish("a", "b")
    assert _soon(lambda: late[0].lookup("a") == "b")
    for visitor in store.visits:
        visitor.close()
    peers.leave()
    late[0].leave()


# Calls that may hang


def test_a_call_that_hangs_is_left_behind() -> None:
    release = threading.Event()
    with pytest.raises(TimeoutError):
        call_with_timeout(release.wait, 0.1)
    release.set()


def test_a_call_returns_raises_or_is_ended_by_the_check() -> None:
    release = threading.Event()

    def check() -> None:
        raise StageError("another has stopped")

    def fail() -> None:
        raise KeyError("mine")

    assert call_with_timeout(lambda: 7, 1.0) == 7
    with pytest.raises(KeyError, match="mine"):
        call_with_timeout(fail, 1.0)
    with pytest.raises(StageError, match="another has stopped"):
        call_with_timeout(release.wait, 5.0, check)
    release.set()
