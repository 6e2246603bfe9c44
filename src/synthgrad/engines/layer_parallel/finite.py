"""Stops a run at numbers that are not finite, for all interfaces in one look."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ...core import DivergedError
from .backend import BackendOutput

__all__ = ["RowGuard"]


class RowGuard:
    """As `core.Guard`, of all that a step has made at once.

    On a CPU the check is made at once. On an accelerator it is queued and read every so many steps; the error
    names the step at which it happened.

    Args:
        names: of the interfaces, bottom first.
        runs: networks side by side: so many rows has each interface.
        every: steps between two looks at what is queued.
    """

    def __init__(self, names: Sequence[str], runs: int, every: int = 50) -> None:
        self._names = names
        self._runs = runs
        self._every = every
        self._queue: list[tuple[int, dict[str, Tensor]]] = []

    def check(
        self, step: int, output: BackendOutput, reached: int, came: int, total: Tensor | None = None
    ) -> None:
        """Look at activations and credits, at the messages that have come, and at the losses.

        Args:
            step: the step.
            ran: what it has made.
            reached: rows of the interfaces that a batch has reached.
            came: rows of the interfaces to which messages have come.
            total: a sum of everything, if it is known.

        Raises:
            DivergedError: if some, or some that were queued, are not finite; names the first that a module would have met.
        """
        delta = output.credits.delta
        found = {
            "activation": output.h[:reached],
            "credit": None if delta is None else delta[:reached],
            "loss": output.losses,
            "message": None if output.messages is None else output.messages[:came],
        }
        rows = {what: t for what, t in found.items() if t is not None and t.numel()}
        if not rows:
            return
        if output.h.is_cpu:
            # A sum is not finite where an element is not, or where it overflows itself: which, is asked only then.
            totals = [t.sum() for t in rows.values()] if total is None else [total]
            if not all(math.isfinite(t.item()) for t in totals):
                self._name(step, {what: _fine(t) for what, t in rows.items()})
            return
        if self._queue and step - self._queue[0][0] >= self._every:
            self.flush()
        self._queue.append((step, {what: _fine(t) for what, t in rows.items()}))

    def flush(self) -> None:
        """Read what is queued.

        Raises:
            DivergedError: if any of it was not finite.
        """
        queue, self._queue = self._queue, []
        if queue and not bool(torch.cat([fine for _, rows in queue for fine in rows.values()]).all()):
            for step, rows in queue:
                self._name(step, rows)

    def _name(self, step: int, rows: Mapping[str, Tensor]) -> None:
        """Raise the error of the first that is not finite, in the order in which modules would have met it."""
        fine = {what: flags.tolist() for what, flags in rows.items()}

        def is_bad(what: str, k: int) -> bool:
            flags = fine.get(what, [])
            return not all(flags[k * self._runs : (k + 1) * self._runs])

        for k, name in enumerate(self._names):
            for what in ("activation", "credit"):
                if is_bad(what, k):
                    raise DivergedError(name, step, what)
        if not all(fine.get("loss", [])):
            raise DivergedError("loss", step)
        for k, name in enumerate(self._names):
            if is_bad("message", k):
                raise DivergedError(name, step)


def _fine(rows: Tensor) -> Tensor:
    """Return which rows are finite."""
    return rows.reshape(len(rows), -1).isfinite().all(1)
