"""Lines over gloo that are made anew: a pair of neighbours at a time, in a thread, under the name of an epoch."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch._C._distributed_c10d import PrefixStore, Store

from ....core import ConfigError, StageError
from .base import PeerStatus, WaitLimit
from .elastic import MadeLine, Member, epoch_of
from .gloo import GlooLine, make_line
from .gloo_group import gloo_device
from .members import StoreMembership, open_store, take_place
from .process_group import WallClock

__all__ = ["ElasticGloo"]

#: How long an attempt to make a line may take, in seconds.
_ATTEMPT_S = 5.0

#: The time between two looks whether a line is to be made, in seconds.
_POLL_S = 0.02

#: How long a process waits for the thread that makes lines when it ends, in seconds.
_PARTING_S = 2.0


class _Given(Exception):
    """The attempt to make a line is pointless by now."""


class _StorePeers:
    """See `Peers`: as much of it as gloo's members need to find each other."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def announce_wait(self, rank: int | None) -> None:
        pass

    def publish(self, key: str, value: str) -> None:
        self._store.set(key, value)

    def lookup(self, key: str) -> str | None:
        return self._store.get(key).decode() if self._store.check([key]) else None

    def status(self, rank: int) -> PeerStatus:
        return PeerStatus()

    def leave(self) -> None:
        pass


class GlooCrossing:
    """See `Crossing`.

    Args:
        members: what the processes know of each other.
        connect: connects to the session's part of the store, through which gloo's members find each other.
        own, neighbour: the stages of the two sides.
        patience_s: how long a send may wait; and how long the neighbour may be silent before it is gone, in seconds.
    """

    def __init__(
        self,
        members: StoreMembership,
        connect: Callable[[], Store],
        own: int,
        neighbour: int,
        patience_s: float,
    ) -> None:
        self._members = members
        self._connect = connect
        self._own = own
        self._neighbour = neighbour
        self._patience_s = patience_s
        self._lower, self._upper = sorted((own, neighbour))
        self._lock = threading.Lock()
        self._ready: tuple[MadeLine, GlooLine, str] | None = None
        self._present: tuple[GlooLine, str] | None = None
        self._old: list[GlooLine] = []
        self._is_closed = False
        self._thread = threading.Thread(
            target=self._run, name=f"synthgrad lines to stage {neighbour}", daemon=True
        )
        self._thread.start()

    def made(self) -> MadeLine | None:
        """See `Crossing.made`."""
        with self._lock:
            if self._ready is None:
                return None
            found, line, epoch = self._ready
            self._ready, self._present = None, (line, epoch)
        return found

    def is_void(self) -> bool:
        """See `Crossing.is_void`."""
        with self._lock:
            present = self._present
        return present is None or self._epoch() != present[1] or self._is_silent()

    def give_up(self) -> None:
        """See `Crossing.give_up`."""
        with self._lock:
            if self._present is not None:
                self._old.append(self._present[0])
                self._present = None
        self._members.lose(self._neighbour)

    def close(self) -> None:
        """See `Crossing.close`."""
        self._is_closed = True
        self._thread.join(_PARTING_S)
        with self._lock:
            lines = [*self._old, *(one[-2] for one in (self._ready, self._present) if one is not None)]
            self._old, self._ready, self._present = [], None, None
        for line in lines:
            line.close()

    def _epoch(self) -> str | None:
        """Return the name that the next line has, or the present one has as long as it stands; None if nobody is there."""
        own, theirs = self._members.sides(self._neighbour)
        if not theirs[0]:
            return None
        return epoch_of(*((own, theirs) if self._own < self._neighbour else (theirs, own)))

    def _is_silent(self) -> bool:
        member: Member = self._members.member(self._neighbour)
        return member.silent_s > self._patience_s

    def _run(self) -> None:
        while not self._is_closed:
            with self._lock:
                old, self._old = self._old, []
                ready = self._ready
                wanted = self._ready is None and self._present is None
                if ready is not None and ready[2] != self._epoch():
                    # Nobody has taken it, and it stands no more.
                    self._ready = None
                    old.append(ready[1])
            for line in old:
                line.close()
            epoch = self._epoch()
            if wanted and epoch is not None and not self._is_silent():
                self._attempt(epoch)
            time.sleep(_POLL_S)

    def _attempt(self, epoch: str) -> None:
        until = time.monotonic() + _ATTEMPT_S

        def check() -> None:
            if self._is_closed or self._epoch() != epoch or time.monotonic() > until:
                raise _Given

        limit = WaitLimit(_ATTEMPT_S, check)
        line: GlooLine | None = None
        try:
            store = self._connect()
            peers = _StorePeers(PrefixStore(f"link/{self._lower}/{epoch}", store))
            ends = (self._lower, self._upper)
            patience_s = max(self._patience_s, _POLL_S)
            line = make_line("", peers, ends, self._own, gloo_device(store), limit, patience_s)
            round_trip_s = line.round_trip_s(is_lower=self._own == self._lower)
        except (_Given, StageError, RuntimeError, OSError) as error:
            if line is not None:
                line.close()
            if not isinstance(error, _Given) or time.monotonic() > until:
                self._members.lose(self._neighbour)
            return
        with self._lock:
            self._ready = MadeLine(line, round_trip_s), line, epoch


class ElasticGloo:
    """The access of a stage to its neighbours over gloo; see `ElasticTransport`.

    Args:
        stage: the number of this stage, from 0.
        num_stages: how many stages there are.
        store: the address of the store that outlives them, ``host:port``; see `serve_store`.
        session: a name of the run, which another run in the same store must not have.

    Raises:
        ConfigError: if the stage is none of these, or the address is none.
        StageError: if nobody answers there.
    """

    def __init__(self, stage: int, num_stages: int, store: str, session: str = "run") -> None:
        if not 0 <= stage < num_stages or num_stages < 2:
            raise ConfigError(
                f"stage {stage} of {num_stages}: expected 0 to {max(num_stages - 1, 1)}, of 2 stages or more"
            )
        self.rank = stage
        self.world_size = num_stages
        self.clock = WallClock()
        self._address = store
        self._session = session
        self._members: StoreMembership | None = None
        open_store(store)  # says at once if nobody is there

    def _part(self) -> Store:
        """Return the part of the store that belongs to the session, over a connection of its own."""
        return PrefixStore(f"synthgrad/{self._session}", open_store(self._address))

    def join(self, greeting: str, facts: Mapping[str, Any]) -> StoreMembership:
        """See `ElasticTransport.join`."""
        life = take_place(self._part(), self.rank, {"the version": greeting, **facts})
        near = [k for k in (self.rank - 1, self.rank + 1) if 0 <= k < self.world_size]
        self._members = StoreMembership(self._part, self.rank, life, near)
        return self._members

    def crossing(self, neighbour: int, device: torch.device, patience_s: float) -> GlooCrossing:
        """See `ElasticTransport.crossing`."""
        assert self._members is not None, "call join first"
        return GlooCrossing(self._members, self._part, self.rank, neighbour, patience_s)
