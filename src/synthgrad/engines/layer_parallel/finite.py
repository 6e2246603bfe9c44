"""Stops a run at values that are not finite, with one check for all interfaces."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ...core import DivergedError
from .backend import BackendOutput

__all__ = ["RowGuard"]


class RowGuard:
    """Like `core.Guard`, for all tensors of a step at once.

    On a CPU the check is done at once. On an accelerator it is queued, and the queue is read every ``every``
    steps; the error names the step at which the value occurred.

    Args:
        names: the names of the interfaces, from the bottom.
        runs: the number of networks side by side: each interface has this many rows.
        every: the number of steps between two reads of the queue.
    """

    def __init__(self, names: Sequence[str], runs: int, every: int = 50) -> None:
        self._names = names
        self._runs = runs
        self._every = every
        self._queue: list[tuple[int, dict[str, Tensor]]] = []

    def check(
        self, step: int, output: BackendOutput, reached: int, came: int, total: Tensor | None = None
    ) -> None:
        """Check activations, credits, the messages that have arrived, and losses.

        Args:
            step: the number of the step.
            output: the output of the backend.
            reached: the number of rows that a batch has reached.
            came: the number of rows to which messages have arrived.
            total: a sum of everything, if it is known.

        Raises:
            DivergedError: if a value, or one that was queued, is not finite; names the first one that a
                module would have met.
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
            # The sum is not finite if an element is not, or if the sum itself overflows. The rows tell, and are checked
            # only in this case.
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
        """Raise the error for the first value that is not finite, in the order of the modules."""
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
