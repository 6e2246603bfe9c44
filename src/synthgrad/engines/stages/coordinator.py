"""Coordinates the ranks of an engine: they meet, publish values, and learn of failures."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ...version import __version__
from .alarm import Alarm
from .layout import RankLayout
from .transport import Peers, Transport, WaitLimit
from .wire import FORMAT

__all__ = ["Coordinator", "greeting"]

#: How often to look for a published value, in seconds. A power of two, so that virtual times stay exact.
_POLL_S = 1 / 64


def greeting() -> str:
    """Return a text that must be the same in all processes before anything else is compared."""
    return f"synthgrad {__version__} (wire format {FORMAT})"


@dataclass(frozen=True, slots=True)
class Coordinator:
    """What a rank shares with all other ranks of one engine.

    Attributes:
        transport: the transport of this rank.
        peers: the other ranks.
        alarm: the alarm, which rings when a rank fails.
    """

    transport: Transport
    peers: Peers
    alarm: Alarm

    @classmethod
    def of(cls, transport: Transport, layout: RankLayout, timeout_s: float = 300.0) -> Coordinator:
        """Return the coordinator for the next engine. Blocks until all ranks have called it.

        All ranks must create their engines in the same order.

        Args:
            transport: the transport of this rank.
            layout: the place of this rank.
            timeout_s: how long to wait for the others, in seconds.

        Raises:
            ConfigError: if another rank runs another version.
            StageError: naming a rank that does not come.
        """
        peers = transport.peers(greeting(), timeout_s)
        return cls(transport, peers, Alarm(peers, transport.clock, layout))

    def publish(self, key: str, value: Any) -> None:
        """Publish a JSON value for all other ranks."""
        self.peers.publish(key, json.dumps(value))

    def wait_for(self, key: str, rank: int, timeout_s: float) -> Any:
        """Return the JSON value that a rank publishes under a key. Blocks until it is there.

        Args:
            key: the key of the value.
            rank: the rank that publishes it.
            timeout_s: how long to wait, in seconds.

        Raises:
            StageError: if it does not come in time, or a rank has stopped; with the cause.
        """
        limit = self.wait_limit(timeout_s, rank)
        limit.announce_wait(rank)
        try:
            while (value := self.peers.lookup(key)) is None:
                limit.check()
                self.transport.clock.sleep(_POLL_S)
        finally:
            limit.announce_wait(None)
        return json.loads(value)

    def wait_limit(self, timeout_s: float, rank: int) -> WaitLimit:
        """Return a limit for a wait that starts now: it ends with the cause of a failure, or at the timeout.

        Args:
            timeout_s: how long to wait, in seconds.
            rank: the rank that is waited for, until another one is announced.
        """
        clock = self.transport.clock
        until = clock.now() + timeout_s
        waited_for = rank

        def check() -> None:
            self.alarm.check()
            if clock.now() > until:
                raise self.alarm.late_error(waited_for, timeout_s)

        def note(rank: int | None) -> None:
            nonlocal waited_for
            self.peers.announce_wait(rank)
            waited_for = waited_for if rank is None else rank

        return WaitLimit(timeout_s, check, note)

    def all_ranks_check(self, timeout_s: float, what: str) -> Callable[[], None]:
        """Return a check for a wait for all other ranks that starts now.

        Raises:
            StageError: by the check, with the cause of a failure, or at the timeout.
        """
        clock = self.transport.clock
        until = clock.now() + timeout_s

        def check() -> None:
            self.alarm.check()
            if clock.now() > until:
                raise self.alarm.missing_error(what, timeout_s)

        return check
