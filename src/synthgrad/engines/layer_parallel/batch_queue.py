"""The batches on their way through the network: module k works on the batch that entered k steps ago."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from ...core import Info, ShapeError, Units
from ...core.in_flight import Batch
from .rules import InterfaceRows

__all__ = ["BatchQueue", "RowsInFlight", "shares_of"]


@dataclass(slots=True)
class RowsInFlight:
    """The messages in flight at all interfaces.

    Like `core.InFlight`, but for all interfaces as rows of the same tensors.

    Attributes:
        rows: the activations that crossed the interfaces.
        delta: the credit that was given, ``(n, B, ...)``, or None.
        messages: the messages that arrived, ``(n, B, ...)``, in per-example units.
        values: the losses that arrived with the messages, ``(B,)`` for each row.
    """

    rows: InterfaceRows
    delta: Tensor | None = None
    messages: Tensor | None = None
    values: Sequence[Tensor | None] = ()

    def state_dict(self) -> dict[str, Any]:
        """Return the messages as plain containers of tensors."""
        rows = self.rows
        return {
            **{"h": rows.h, "contexts": rows.contexts, "reached": rows.reached, "shares": rows.shares},
            "infos": [_pack(info) for info in rows.infos],
            **{"delta": self.delta, "messages": self.messages, "values": list(self.values)},
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> RowsInFlight:
        """Create the object from what `state_dict` returned."""
        infos = [Info(**info) for info in state["infos"]]
        rows = InterfaceRows(state["h"], state["contexts"], state["reached"], infos, state.get("shares"))
        return cls(rows, state["delta"], state["messages"], state["values"])


class BatchQueue:
    """The newest batches, newest first, and their contexts as one tensor.

    Args:
        rows: the number of interfaces, one less than the number of modules.
        runs: the number of networks that train side by side. If there are several, every tensor has a leading
            dimension for them.

    Attributes:
        contexts: the contexts at all interfaces, ``(rows · runs, B, ...)``; None if there are none.
        shares: the shares of the examples in the criterion, ``(rows · runs, B)``; None if no tokens are counted.
    """

    def __init__(self, rows: int, runs: int) -> None:
        self._rows = rows
        self._runs = runs
        self._batches: deque[Batch] = deque(maxlen=rows + 1)
        self.contexts: Tensor | None = None
        self.shares: Tensor | None = None
        self._before: tuple[Tensor | None, Tensor | None, tuple[Batch, ...]] = (None, None, ())

    def enter(self, batch: Batch) -> None:
        """Add the newest batch; `leave` removes it again.

        Raises:
            ShapeError: if its size differs from that of the batch before.
        """
        self._before = self.contexts, self.shares, tuple(self._batches)
        contexts = self._entered(batch.info.context, self.contexts, "a context")
        self.contexts, self.shares = contexts, self._entered(batch.shares, self.shares, "labels")
        self._batches.appendleft(batch)

    def _entered(self, new: Tensor | None, old: Tensor | None, what: str) -> Tensor | None:
        """Return what is known at all interfaces, one batch later."""
        if new is None:
            return old
        new = new if self._runs > 1 else new.unsqueeze(0)
        if old is None or not self._batches:
            # Layers that no batch has reached yet get the same, which has the right shape and dtype.
            return new.repeat(self._rows, *[1] * (new.ndim - 1))
        if new.shape[1:] != old.shape[1:]:
            raise ShapeError(
                f"got {what} of shape {tuple(new.shape[1:])}, expected {tuple(old.shape[1:])} as in the batches "
                "before: layers run as one batch, so all must have one size; drop the last, smaller one"
            )
        return torch.cat((new, old[: -self._runs]))

    def leave(self) -> None:
        """Remove the batch that entered last, because its step has failed."""
        self.contexts, self.shares, batches = self._before
        self._batches = deque(batches, maxlen=self._rows + 1)

    @property
    def top(self) -> Batch | None:
        """The batch that the last module works on; None while it has none."""
        return self._batches[-1] if len(self._batches) > self._rows else None

    def infos(self) -> Sequence[Info]:
        """Return what is known about the batch at each interface, for each run."""
        found: list[Info] = []
        for batch in list(self._batches)[: self._rows]:
            info = batch.info
            if self._runs == 1:
                found.append(info)
                continue
            parts = [
                [None] * self._runs if t is None else t.unbind()
                for t in (info.context, info.ids, info.inputs)
            ]
            found += [Info(c, ids, info.step, x) for c, ids, x in zip(*parts, strict=True)]
        return found

    def state_dict(self) -> dict[str, Any]:
        """Return the batches as plain containers of tensors."""
        batches = [
            {**_pack(b.info), "target": b.target, "entered": b.entered, "shares": b.shares}
            for b in self._batches
        ]
        return {"contexts": self.contexts, "shares": self.shares, "batches": batches}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load what `state_dict` returned."""
        self.contexts, self.shares = state["contexts"], state.get("shares")
        names = [f.name for f in fields(Info)]
        batches = [
            Batch(Info(**{name: b[name] for name in names}), b["target"], b["entered"], b.get("shares"))
            for b in state["batches"]
        ]
        self._batches = deque(batches, maxlen=self._rows + 1)


def shares_of(units: Units, runs: int, x: Tensor, y: Any, context: Tensor | None) -> Tensor | None:
    """Return the share of each example in the criterion, ``(B,)``, or ``(runs, B)`` of several networks.

    Args:
        units: how the criterion reduces.
        runs: the number of networks.
        x: their inputs, ``(B, ...)`` or ``(runs, B, ...)``, and all others likewise.
        y: the target.
        context: the context of the rules.

    Returns:
        None if no tokens are counted.

    Raises:
        ShapeError: if there are labels of another number of examples.
    """
    if not units.counts_tokens:
        return None
    if runs == 1:
        found = units.shares_of({}, context, y)
    else:
        each = [(y[k], None if context is None else context[k]) for k in range(runs)]
        found = torch.stack([s for target, c in each if (s := units.shares_of({}, c, target)) is not None])
    rows = x.shape[runs > 1]
    if found is not None and found.shape[-1] != rows:
        raise ShapeError(
            f"got labels of {found.shape[-1]} sequences for a batch of {rows}, expected a row of labels for each example"
        )
    return found


def _pack(info: Info) -> dict[str, Any]:
    return {f.name: getattr(info, f.name) for f in fields(info)}
