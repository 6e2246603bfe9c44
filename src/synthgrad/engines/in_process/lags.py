"""Lags of messages at interfaces, in steps, and the queues that produce them."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any

from ...core.in_flight import Batch, InFlight
from ..base import ForwardArgs

__all__ = ["Lag", "Mailbox", "RecentBatches"]


@dataclass(frozen=True, slots=True)
class Lag:
    """The lags at one interface, in steps.

    Attributes:
        forward: the module above receives what the module below produced this many steps ago. A negative
            number is for interfaces with synthetic inputs: the module above is that many batches ahead.
        observe: the rule observes a message this many steps after the module above has sent it.
    """

    forward: int = 0
    observe: int = 0


@dataclass
class Mailbox:
    """The messages in flight at one interface, oldest first.

    Attributes:
        lag: the lags of the interface.
        up: activations on their way to the modules above.
        down: messages on their way to the module below.
    """

    lag: Lag
    up: deque[InFlight] = field(default_factory=deque["InFlight"])
    down: deque[InFlight] = field(default_factory=deque["InFlight"])

    def pass_up(self, flight: InFlight) -> InFlight | None:
        """Add an activation, and return the one that is due above; None while the lag fills."""
        self.up.append(flight)
        return self.up.popleft() if len(self.up) > max(self.lag.forward, 0) else None

    def pass_down(self, flight: InFlight, step: int) -> None:
        """Add a message that is sent in ``step``."""
        flight.due = step + self.lag.observe
        self.down.append(flight)

    def pop_due(self, step: int) -> list[InFlight]:
        """Remove and return the messages that are due in ``step``."""
        due: list[InFlight] = []
        while self.down and self.down[0].due <= step:
            due.append(self.down.popleft())
        return due


@dataclass
class RecentBatches:
    """The newest batches, for networks whose upper modules are ahead of the lower ones.

    Attributes:
        ahead: the number of batches that the top of the network is ahead of its bottom.
    """

    ahead: int
    _kept: deque[tuple[ForwardArgs, Batch]] = field(default_factory=deque["tuple[ForwardArgs, Batch]"])

    def enter(self, passed: ForwardArgs, batch: Batch) -> tuple[ForwardArgs, Batch] | None:
        """Add the newest batch, and return the batch for the bottom; None while there are too few."""
        if not self.ahead:
            return passed, batch
        self._kept.append((passed, batch))
        if len(self._kept) <= self.ahead:
            return None
        while len(self._kept) > self.ahead + 1:
            self._kept.popleft()
        return self._kept[0]

    def after(self, batch: Batch, ahead: int) -> Batch:
        """Return the batch that entered ``ahead`` steps after another batch."""
        if not ahead:
            return batch
        entered = batch.entered + ahead
        return next(b for _, b in self._kept if b.entered == entered)

    def state_dict(self) -> list[dict[str, Any]]:
        """Return the batches as plain containers of tensors."""
        return [
            {"args": args, "kwargs": kwargs, **batch.state_dict()} for (args, kwargs), batch in self._kept
        ]

    def load_state_dict(self, state: list[dict[str, Any]]) -> None:
        """Load what `state_dict` returned."""
        self._kept = deque(
            ((saved["args"], saved.get("kwargs", {})), Batch.from_state(saved)) for saved in state
        )
