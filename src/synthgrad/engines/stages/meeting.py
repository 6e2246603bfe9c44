"""Where the ranks of an engine meet before they are connected, and when something fails: a store, and an alarm in it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from ...core import StageError
from .alarm import Alarm
from .layout import Layout
from .transport import Store, Transport

__all__ = ["Meeting"]

#: How often to look whether something was told, in seconds. A power of two, so that virtual times stay exact.
_POLL_S = 1 / 64


@dataclass(frozen=True, slots=True)
class Meeting:
    """What a rank and all others of one engine share.

    Attributes:
        transport: of this rank.
        store: of this engine.
        alarm: rung when a rank fails.
    """

    transport: Transport
    store: Store
    alarm: Alarm

    @classmethod
    def of(cls, transport: Transport, layout: Layout) -> Meeting:
        """Return the meeting of the next engine. Does not block; all ranks must call it for their engines in one order."""
        store = transport.store()
        who = f"stage {layout.stage} (rank {transport.rank})"
        return cls(transport, store, Alarm(store, transport.clock, who))

    def tell(self, key: str, value: Any) -> None:
        """Tell the others a JSON value."""
        self.store.set(key, json.dumps(value))

    def told(self, key: str, timeout_s: float, otherwise: str) -> Any:
        """Return the JSON value that some rank has told, or will soon. Blocks.

        Raises:
            StageError: saying ``otherwise`` if it does not come in time; or with the cause, if a rank has stopped.
        """
        clock = self.transport.clock
        until = clock.now() + timeout_s
        while not self.store.check(key):
            self.alarm.check()
            if clock.now() > until:
                raise StageError(f"{otherwise} within {timeout_s:g} s; do all processes build the engine?")
            clock.sleep(_POLL_S)
        return json.loads(self.store.get(key))
