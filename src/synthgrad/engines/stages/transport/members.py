"""What the processes of a pipeline know of each other: each writes into a store that outlives them, at regular times.

::

    member/2   {"life": 1, "beat": 417, "step": 5031, "met": [true, true], "ended": false, "lost": {"1": 0, "3": 2}}

Who has not changed what it writes for a while is dead, frozen or cut off. The store is a process of its own, see
`serve_store`; while it cannot be reached, everybody goes on with the lines that there are.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any

from torch._C._distributed_c10d import Store, TCPStore

from ....core import ConfigError, StageError
from .base import difference
from .elastic import Member

__all__ = ["StoreMembership", "open_store", "serve_store", "take_place"]

#: The time between two signs of life, in seconds.
_BEAT_S = 0.1

#: How long the process of a stage is watched before its place is taken, in seconds.
_WATCH_S = 1.0

#: The longest time that a call of the store may take, in seconds.
_CALL_S = 5.0

#: How long a process that leaves waits until its last words are in the store, in seconds.
_PARTING_S = 1.0

_WhatStoreRaises = (RuntimeError, OSError)


def serve_store(host: str, port: int) -> TCPStore:
    """Return a store that listens at one address of this machine, for as long as the object lives.

    Raises:
        ConfigError: if it cannot listen there.
    """
    try:
        listener = socket.create_server((host, port), backlog=1024).detach()
    except OSError as error:
        reason = os.strerror(error.errno or 0)
        raise ConfigError(f"{host}:{port}: {reason}; choose another address or port") from error
    return TCPStore(host, port, None, True, wait_for_workers=False, master_listen_fd=listener)


def open_store(address: str) -> TCPStore:
    """Return a connection to the store at an address, ``host:port``.

    Raises:
        ConfigError: if that is no address.
        StageError: if nobody answers there.
    """
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isdecimal() or not 0 < int(port) < 1 << 16:
        raise ConfigError(f"store '{address}': expected an address and a port, as in 10.0.0.1:29400")
    try:
        # Looks first, because the store's own client tries for long and prints a page.
        socket.create_connection((host, int(port)), timeout=_CALL_S).close()
        return TCPStore(host, int(port), None, False, timedelta(seconds=_CALL_S), wait_for_workers=False)
    except _WhatStoreRaises as error:
        raise StageError(
            f"nobody answers at {address}, where the store was to be; start it with: synthgrad store --host {host} "
            f"--port {port}"
        ) from error


def take_place(store: Store, stage: int, card: Mapping[str, Any]) -> int:
    """Take the place of a stage; return the life of this process.

    Args:
        store: of the session.
        stage: the number of the stage.
        card: JSON values that must be the same in all processes.

    Raises:
        ConfigError: if another process has written other values, or the stage is alive.
        StageError: if the store does not answer.
    """
    try:
        # Who comes first, says what all others must say too.
        theirs = json.loads(store.compare_set("card", "", json.dumps(card)))
        for name, value in card.items():
            if theirs.get(name) != value:
                raise ConfigError(
                    f"stage {stage} and the process that came first differ in {name}: {difference(value, theirs.get(name))}; "
                    "start all with the same program, settings and version, or give another session"
                )
        until = time.monotonic() + _WATCH_S
        first = _read(store, stage)
        while first is not None and not first["ended"] and time.monotonic() < until:
            time.sleep(_BEAT_S)
            now = _read(store, stage)
            if now is not None and now["beat"] != first["beat"]:
                raise ConfigError(
                    f"stage {stage} is alive, at step {now['step']}: its place can be taken when it has ended; give this "
                    "process another stage, or end that one first"
                )
        life, last = int(store.add(f"life/{stage}", 1)), 0 if first is None else int(first["life"])
        # Another store than the one that counted the lives before begins anew.
        return life if life > last else int(store.add(f"life/{stage}", last - life + 1))
    except _WhatStoreRaises as error:
        raise StageError(f"the store does not answer: {str(error).splitlines()[0]}") from error


def _read(store: Store, stage: int) -> dict[str, Any] | None:
    key = f"member/{stage}"
    return json.loads(store.get(key)) if store.check([key]) else None


def _words(life: int, beat: int) -> dict[str, Any]:
    return {"life": life, "beat": beat, "step": 0, "met": [False, False], "ended": False, "lost": {}}


class _Seen:
    """What was read of another stage last, when that was, and when it had changed."""

    def __init__(self) -> None:
        self.words = _words(life=0, beat=-1)
        self.at = self.read_at = time.monotonic()


class StoreMembership:
    """The implementation of `Membership` over a store: a thread writes, and reads what the neighbours write.

    Args:
        connect: connects to the session's part of the store; called again when the connection has broken.
        stage: the stage of this process.
        life: see `take_place`.
        others: the stages whose words are read.

    Attributes:
        problem: why the store could not be reached last; None if it could.
        is_replaced: whether another process has taken the place of this one; then this one writes no more.
    """

    def __init__(self, connect: Callable[[], Store], stage: int, life: int, others: Sequence[int]) -> None:
        self._connect = connect
        self._store: Store | None = connect()
        self._stage = stage
        self._own = _words(life, beat=0)
        self._seen = {other: _Seen() for other in others}
        self._lock = threading.Lock()
        self._bell = threading.Event()
        self._stopped = False
        self.problem: str | None = None
        self.is_replaced = False
        self._thread = threading.Thread(target=self._run, name="synthgrad members", daemon=True)
        self._thread.start()

    @property
    def life(self) -> int:
        """See `Membership.life`."""
        return self._own["life"]

    def meet(self, above: bool, below: bool) -> None:
        """See `Membership.meet`."""
        if self._own["met"] != [above, below]:
            self._own["met"] = [above, below]
            self._bell.set()

    def announce(self, step: int) -> None:
        """See `Membership.announce`."""
        self._own["step"] = step

    def member(self, stage: int) -> Member:
        """See `Membership.member`."""
        with self._lock:
            seen = self._seen[stage]
            # As long as the store cannot be read, nobody is known to be silent.
            words, silent_s = seen.words, seen.read_at - seen.at
        above, below = words["met"]
        return Member(words["life"], words["step"], (above, below), words["ended"], silent_s)

    def sides(self, neighbour: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """Return life and lost lines of this process and of a neighbour, of the link between them."""
        with self._lock:
            words = self._seen[neighbour].words
            theirs = (words["life"], words["lost"].get(str(self._stage), 0))
            return (self._own["life"], self._own["lost"].get(str(neighbour), 0)), theirs

    def lose(self, neighbour: int) -> None:
        """Tell a neighbour that the line to it is given up."""
        with self._lock:
            lost = self._own["lost"]
            self._own["lost"] = {**lost, str(neighbour): lost.get(str(neighbour), 0) + 1}
        self._bell.set()

    def leave(self) -> None:
        """See `Membership.leave`."""
        if not self._stopped:
            self._own["ended"] = True
            self.stop()

    def stop(self) -> None:
        """Write no more; the others will take this process for dead. May be called twice."""
        self._stopped = True
        self._bell.set()
        self._thread.join(_PARTING_S)

    def _run(self) -> None:
        more = True
        while more:
            more = not self._stopped  # once more, so that the last words are written
            try:
                self._exchange(self._store or self._connect())
                self.problem = None
            except (*_WhatStoreRaises, StageError) as error:
                self._store = None
                self.problem = f"the store does not answer: {str(error).splitlines()[0]}"
            except ValueError:
                continue  # words that are no JSON
            self._bell.wait(_BEAT_S)
            self._bell.clear()

    def _exchange(self, store: Store) -> None:
        self._store = store
        here = _read(store, self._stage)
        if here is not None and here["life"] > self._own["life"]:
            self.is_replaced = True
            return
        with self._lock:
            self._own["beat"] += 1
            words = json.dumps(self._own)
        store.set(f"member/{self._stage}", words)
        for other, seen in self._seen.items():
            found = _read(store, other)
            with self._lock:
                # Both at once: after a time without the store nobody is silent before he was read again.
                seen.read_at = time.monotonic()
                if found is None:  # it has not come, or not yet to this store
                    seen.at = seen.read_at
                    continue
                if (found["life"], found["beat"]) != (seen.words["life"], seen.words["beat"]):
                    seen.at = seen.read_at
                seen.words = found
