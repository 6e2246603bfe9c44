"""Lags per interface: how many steps late messages cross it, forward and backward."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..core import Credit, Info, Message
from .base import Passed

if TYPE_CHECKING:
    from .turns import Turn

__all__ = ["Batch", "Crossed", "Lag", "Mailbox", "Recent"]


@dataclass(frozen=True, slots=True)
class Lag:
    """Lags of one interface, in steps.

    Attributes:
        forward: the module above is fed with what the module below produced this many steps ago. Less than
            0 where the interface has synthetic inputs: the module above is that many batches ahead.
        observe: a message is observed this many steps after the module above has sent it.
    """

    forward: int = 0
    observe: int = 0


@dataclass(slots=True)
class Batch:
    """A batch on its way through the network: what it is, and the step at which it entered."""

    info: Info
    target: Any
    entered: int


@dataclass(slots=True)
class Crossed:
    """A batch that has crossed an interface: what is kept until its message has been observed.

    Attributes:
        batch: which batch.
        h: the message forward, ``(B, ...)``, detached.
        leaf: the leaf that the module above was fed with; its gradient becomes the message back.
        credit: what the rule gave, if it was asked; ``pending`` is emptied where it will be outdated.
        message: what came back, once it has.
        due: the step at which to observe it.
        missing: modules above that have yet to add their part to the message.
        asked: the step at which the rule gave its credit: what it left pending is valid in that step only.
        waiting: the turn of the module below that waits for the message, and which of its ends does.
    """

    batch: Batch
    h: Tensor
    leaf: Tensor | None = None
    credit: Credit | None = None
    message: Message | None = None
    due: int = 0
    missing: int = 0
    asked: int = -1
    waiting: tuple[Turn, int] | None = None


@dataclass
class Mailbox:
    """What waits at one interface: activations going up and messages coming down, oldest first."""

    lag: Lag
    up: deque[Crossed] = field(default_factory=deque["Crossed"])
    down: deque[Crossed] = field(default_factory=deque["Crossed"])

    def pass_up(self, crossed: Crossed) -> Crossed | None:
        """Put in what crosses now; take out what is due above, or None while the lag fills."""
        self.up.append(crossed)
        return self.up.popleft() if len(self.up) > max(self.lag.forward, 0) else None

    def pass_down(self, crossed: Crossed, step: int) -> None:
        """Put in a message that was sent at ``step``."""
        crossed.due = step + self.lag.observe
        self.down.append(crossed)

    def take_due(self, step: int) -> list[Crossed]:
        """Take out the messages that are due at ``step``."""
        due: list[Crossed] = []
        while self.down and self.down[0].due <= step:
            due.append(self.down.popleft())
        return due

    def state_dict(self) -> dict[str, Any]:
        """Return what is under way, as plain containers of tensors."""
        return {"up": [_pack(c) for c in self.up], "down": [_pack(c) for c in self.down]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what `state_dict` returned."""
        self.up = deque(_unpack(c) for c in state["up"])
        self.down = deque(_unpack(c) for c in state["down"])


@dataclass
class Recent:
    """The newest batches, where modules above are ahead of those below: the lowest works on the oldest.

    Attributes:
        ahead: batches that the top of the network is ahead of its bottom.
    """

    ahead: int
    _kept: deque[tuple[Passed, Batch]] = field(default_factory=deque["tuple[Passed, Batch]"])

    def enter(self, passed: Passed, batch: Batch) -> tuple[Passed, Batch] | None:
        """Put in the newest batch; take out the one for the bottom, or None while too few have come."""
        if not self.ahead:
            return passed, batch
        self._kept.append((passed, batch))
        if len(self._kept) <= self.ahead:
            return None
        while len(self._kept) > self.ahead + 1:
            self._kept.popleft()
        return self._kept[0]

    def after(self, batch: Batch, ahead: int) -> Batch:
        """Return the batch that entered this many steps after another."""
        if not ahead:
            return batch
        entered = batch.entered + ahead
        return next(b for _, b in self._kept if b.entered == entered)

    def state_dict(self) -> list[dict[str, Any]]:
        """Return the batches, as plain containers of tensors."""
        return [
            {"args": args, "kwargs": kwargs, **_pack_batch(batch)} for (args, kwargs), batch in self._kept
        ]

    def load_state_dict(self, state: list[dict[str, Any]]) -> None:
        """Take up what `state_dict` returned."""
        self._kept = deque(
            ((saved["args"], saved.get("kwargs", {})), _unpack_batch(saved)) for saved in state
        )


def _pack_batch(batch: Batch) -> dict[str, Any]:
    info = {f.name: getattr(batch.info, f.name) for f in fields(batch.info)}
    return {"info": info, "target": batch.target, "entered": batch.entered}


def _unpack_batch(saved: Mapping[str, Any]) -> Batch:
    return Batch(Info(**saved["info"]), saved["target"], saved["entered"])


def _pack(crossed: Crossed) -> dict[str, Any]:
    # A module that waits is not saved, for a graph cannot be: after a resume it misses that message. A pending prediction or a leaf is never saved: a lag has dropped the one, a step's end the other.
    credit, message = crossed.credit, crossed.message
    return {
        **_pack_batch(crossed.batch),
        "h": crossed.h,
        "delta": None if credit is None else credit.delta,
        "credited": credit is not None,
        "gradient": None if message is None else message.gradient,
        "loss": None if message is None else message.loss,
        "due": crossed.due,
    }


def _unpack(saved: Mapping[str, Any]) -> Crossed:
    gradient = saved["gradient"]
    return Crossed(
        batch=_unpack_batch(saved),
        h=saved["h"],
        credit=Credit(saved["delta"]) if saved["credited"] else None,
        message=None if gradient is None else Message(gradient, saved["loss"]),
        due=saved["due"],
    )
