"""Connections between all pairs of processes, which carry texts and signs of life, but no tensors.

::

    rank 0 ══════ rank 1      each line: ["tell", key, text] │ ["beat", the rank waited for] │ ["bye"]
       ╚═ rank 2 ═╝           the end of the stream without a "bye": that process is gone

A thread sends a beat at regular times. So a process whose connection stands but is silent is frozen or cut
off from the network. If a process is killed, all others know it at once, since its kernel closes the
connection. Nothing here uses the store of ``torch.distributed``, because the process that holds the store may
be the one that is frozen.
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

#: The time between two beats, in seconds.
_BEAT_S = 0.25

#: A rank that has been silent for longer is not waited for, in seconds.
_SILENT_S = 1.0

#: How long a rank that leaves waits until the others have read its last texts, in seconds.
_PARTING_S = 1.0


class _Peer:
    """The connection to one rank, with buffers for texts that are not complete yet."""

    def __init__(self, end: socket.socket) -> None:
        self.end: socket.socket | None = end
        self.unsent = bytearray()
        self.unread = bytearray()
        self.heard_at = time.perf_counter()
        self.waits_for: int | None = None
        self.has_left = False


class Connections:
    """The implementation of `Peers` over sockets.

    Args:
        ends: connected sockets to all other ranks, by rank; this object owns them.
    """

    def __init__(self, ends: Mapping[int, socket.socket]) -> None:
        self._waits_for: int | None = None
        self._texts: dict[str, str] = {}
        self._lock = threading.Lock()
        self._peers = {rank: _Peer(end) for rank, end in ends.items()}
        self._bell, self._hears = socket.socketpair()
        self._until: float | None = (
            None  # the latest time at which the thread ends; None until this rank leaves
        )
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
        """See `Peers.leave`. Blocks for a second at most, until the others have read what was published."""
        with self._lock:
            if self._until is None:
                self._write(["bye"])
                self._until = time.perf_counter() + _PARTING_S
        self._ring()
        self._thread.join(2 * _PARTING_S)

    def _write(self, words: list[Any]) -> None:
        """Append a line for all peers to their buffers. The caller holds the lock."""
        line = json.dumps(words).encode() + b"\n"
        for peer in self._peers.values():
            if peer.end is not None:
                peer.unsent += line

    def _ring(self) -> None:
        """Wake the thread."""
        with suppress(OSError):  # the socket is full, so the thread will wake up; or it is closed
            self._bell.send(b"!")

    # -- the thread -----------------------------------------------------------------------------------

    def _run(self) -> None:
        before = beaten_at = time.perf_counter()
        while not self._is_over(before):
            events = self._selector.select(_BEAT_S / 4 if self._until is not None else _BEAT_S)
            now = time.perf_counter()
            # If this process was frozen or starved itself, the silence is not the fault of another.
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
        """Return whether this rank has left, and the others have closed their connections or had time to."""
        if self._until is None:
            return False
        # A frozen rank does not read; it finds what was published when it continues.
        return now > self._until or all(
            peer.end is None or now - peer.heard_at > _SILENT_S for peer in self._peers.values()
        )

    def _drain(self) -> None:
        with suppress(BlockingIOError):
            self._hears.recv(4096)

    def _beat(self) -> None:
        line = json.dumps(["beat", self._waits_for]).encode() + b"\n"
        for peer in self._peers.values():
            if (
                peer.end is not None and not peer.unsent
            ):  # beats must not pile up for a rank that does not read
                peer.unsent += line

    def _send(self, peer: _Peer) -> None:
        """Send as much as the other side accepts; the rest is sent when it accepts more."""
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
            # The other side closes the connection when it has read everything. To close it here would lose the rest.
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
        """Handle the end of the stream."""
        peer.heard_at = time.perf_counter()
        self._hang_up(peer)

    def _hang_up(self, peer: _Peer) -> None:
        if peer.end is not None:
            self._selector.unregister(peer.end)
            peer.end.close()
            peer.end = None
