"""What processes know of each other: a connection between each two, that carries no tensors.

::

    rank 0 ══════ rank 1      each line: ["tell", name, text] │ ["beat", the rank waited for] │ ["bye"]
       ╚═ rank 2 ═╝           the end of the stream without a "bye": that process is gone

A thread writes a beat every now and then, so a process whose connection stands and is silent is frozen or cut off, and one
that is killed is known to all others at once: its kernel closes the connection. Nothing here goes through the store of
``torch.distributed``, whose holder may be the one that is frozen.
"""

from __future__ import annotations

import json
import selectors
import socket
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from .base import PeerStatus

__all__ = ["Connections"]

#: Between two beats, in seconds.
_BEAT_S = 0.25

#: Whoever is silent for so long is not waited for, in seconds.
_SILENT_S = 1.0

#: How long a rank that parts waits until the others have taken its last words, in seconds.
_PARTING_S = 1.0


class _Peer:
    """The connection to one rank; of its texts what is not whole yet."""

    def __init__(self, end: socket.socket) -> None:
        self.end: socket.socket | None = end
        self.unsent = bytearray()
        self.unread = bytearray()
        self.heard_at = time.perf_counter()
        self.waits_for: int | None = None
        self.has_left = False


class Connections:
    """See `Peers`.

    Args:
        ends: connected sockets to all other ranks, by rank; owned from now on.
    """

    def __init__(self, ends: Mapping[int, socket.socket]) -> None:
        self._waits_for: int | None = None
        self._texts: dict[str, str] = {}
        self._lock = threading.Lock()
        self._peers = {rank: _Peer(end) for rank, end in ends.items()}
        self._bell, self._hears = socket.socketpair()
        self._until: float | None = None  # when it ends at the latest; None while it goes on
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._hears, selectors.EVENT_READ)
        self._hears.setblocking(False)
        self._bell.setblocking(False)
        for peer in self._peers.values():
            assert peer.end is not None
            peer.end.setblocking(False)
            self._selector.register(peer.end, selectors.EVENT_READ, peer)
        self._thread = threading.Thread(target=self._run, name="synthgrad peers", daemon=True)
        self._thread.start()

    def announce_wait(self, rank: int | None) -> None:
        """See `Peers.announce_wait`."""
        self._waits_for = rank

    def publish(self, key: str, value: str) -> None:
        """See `Peers.publish`."""
        with self._lock:
            self._texts.setdefault(key, value)
            self._write(["tell", key, value])
        self._ring()

    def lookup(self, key: str) -> str | None:
        """See `Peers.lookup`."""
        return self._texts.get(key)

    def status(self, rank: int) -> PeerStatus:
        """See `Peers.status`."""
        peer = self._peers.get(rank)
        if peer is None:
            return PeerStatus()
        is_gone = peer.end is None and not peer.has_left
        return PeerStatus(is_gone, peer.has_left, time.perf_counter() - peer.heard_at, peer.waits_for)

    def leave(self) -> None:
        """See `Peers.part`. Blocks for a second at most, until the others have read what they were told."""
        with self._lock:
            if self._until is None:
                self._write(["bye"])
                self._until = time.perf_counter() + _PARTING_S
        self._ring()
        self._thread.join(2 * _PARTING_S)

    def _write(self, words: list[Any]) -> None:
        """Have words sent to all. With the lock."""
        line = json.dumps(words).encode() + b"\n"
        for peer in self._peers.values():
            if peer.end is not None:
                peer.unsent += line

    def _ring(self) -> None:
        """Wake the thread."""
        with suppress(OSError):  # it is full, so it is rung; or all is over
            self._bell.send(b"!")

    # -- the thread -----------------------------------------------------------------------------------

    def _run(self) -> None:
        before = beaten_at = time.perf_counter()
        while not self._is_over(before):
            events = self._selector.select(_BEAT_S / 4 if self._until is not None else _BEAT_S)
            now = time.perf_counter()
            # Where this process was frozen itself, or starved, no other is to blame for the silence.
            pause = max(now - before - 2 * _BEAT_S, 0.0)
            before = now
            with self._lock:
                for peer in self._peers.values():
                    peer.heard_at += pause if peer.end is not None else 0.0
                for key, _ in events:
                    if key.data is None:
                        self._drain()
                    else:
                        self._read(key.data)
                if now - beaten_at >= _BEAT_S and self._until is None:
                    beaten_at = now
                    self._beat()
                for peer in self._peers.values():
                    self._send(peer)
        for peer in self._peers.values():
            self._hang_up(peer)
        self._selector.close()
        self._bell.close()
        self._hears.close()

    def _is_over(self, now: float) -> bool:
        """Has it parted, and have all others hung up, or had the time to?"""
        if self._until is None:
            return False
        # One that is frozen does not read; what it was told it finds when it goes on.
        return now > self._until or all(
            peer.end is None or now - peer.heard_at > _SILENT_S for peer in self._peers.values()
        )

    def _drain(self) -> None:
        with suppress(BlockingIOError):
            self._hears.recv(4096)

    def _beat(self) -> None:
        line = json.dumps(["beat", self._waits_for]).encode() + b"\n"
        for peer in self._peers.values():
            if peer.end is not None and not peer.unsent:  # what a frozen one does not take must not pile up
                peer.unsent += line

    def _send(self, peer: _Peer) -> None:
        """Send as much as the other side takes; the rest waits until it takes more."""
        if peer.end is None:
            return
        try:
            while peer.unsent:
                del peer.unsent[: peer.end.send(peer.unsent)]
        except BlockingIOError:
            pass
        except OSError:
            self._lose(peer)
            return
        if self._until is not None and not peer.unsent:
            # Whoever has read all of it hangs up. To do so here would lose what has not been read.
            with suppress(OSError):
                peer.end.shutdown(socket.SHUT_WR)
        wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if peer.unsent else 0)
        self._selector.modify(peer.end, wanted, peer)

    def _read(self, peer: _Peer) -> None:
        if peer.end is None:
            return
        try:
            while data := peer.end.recv(1 << 16):
                peer.unread += data
                if len(data) < 1 << 16:
                    break
        except BlockingIOError:
            return
        except OSError:
            data = b""
        *lines, rest = peer.unread.split(b"\n")
        peer.unread = rest
        for line in lines:
            self._hear(peer, json.loads(line))
        if not data and peer.end is not None:
            self._lose(peer)

    def _hear(self, peer: _Peer, words: list[Any]) -> None:
        peer.heard_at = time.perf_counter()
        match words:
            case ["tell", str(key), str(value)]:
                self._texts.setdefault(key, value)
            case ["beat", waits_for]:
                peer.waits_for = waits_for
            case ["bye"]:
                peer.has_left = True
                self._hang_up(peer)
            case _:
                pass

    def _lose(self, peer: _Peer) -> None:
        """The stream has ended."""
        peer.heard_at = time.perf_counter()
        self._hang_up(peer)

    def _hang_up(self, peer: _Peer) -> None:
        if peer.end is not None:
            self._selector.unregister(peer.end)
            peer.end.close()
            peer.end = None
