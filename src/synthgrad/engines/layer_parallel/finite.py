"""Stops a run at numbers that are not finite, for all interfaces in one look."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ...core import DivergedError

__all__ = ["RowGuard"]


class RowGuard:
    """As `core.Guard`, of all messages and losses of a step at once.

    On a CPU the check is made at once. On an accelerator it is queued and read every so many steps; the error
    names the step at which it happened.

    Args:
        names: of the interfaces, bottom first.
        runs: networks side by side: so many rows of messages has each interface.
        every: steps between two looks at what is queued.
    """

    def __init__(self, names: Sequence[str], runs: int, every: int = 50) -> None:
        self._names = names
        self._runs = runs
        self._every = every
        self._queue: list[tuple[int, Tensor, int]] = []

    def check(
        self, step: int, messages: Tensor | None, losses: Tensor | None, total: Tensor | None = None
    ) -> None:
        """Look at the messages that have come, ``(n, B, ...)``, and at the losses, ``(runs,)``.

        Args:
            step: the step.
            messages: as they are.
            losses: as they are.
            total: their sum, if it is known.

        Raises:
            DivergedError: if some, or some that were queued, are not finite; names the lowest interface.
        """
        found = [t for t in (messages, losses) if t is not None and t.numel()]
        if not found:
            return
        if found[0].is_cpu:
            # A sum is not finite where an element is not; which one, is asked only then.
            totals = [t.sum() for t in found] if total is None else [total]
            if not all(math.isfinite(t.item()) for t in totals):
                self._name(step, _rows(found), 0 if losses is None else len(losses))
            return
        if self._queue and step - self._queue[0][0] >= self._every:
            self.flush()
        self._queue.append((step, _rows(found), 0 if losses is None else len(losses)))

    def flush(self) -> None:
        """Read what is queued.

        Raises:
            DivergedError: if any of it was not finite.
        """
        queue, self._queue = self._queue, []
        if queue and not bool(torch.cat([fine for _, fine, _ in queue]).all()):
            for noted in queue:
                self._name(*noted)

    def _name(self, step: int, fine: Tensor, losses: int) -> None:
        """Raise the error of the first that is not finite, in the order in which modules would have met it."""
        flags: list[bool] = fine.tolist()
        rows = len(flags) - losses
        wheres = [self._names[k // self._runs] for k in range(rows)] + ["loss"] * losses
        top = self._names[-1]
        for last in (False, True):  # the loss comes before the message that it sends
            for where, is_fine in zip(wheres, flags, strict=True):
                if not is_fine and (where == top) == last:
                    raise DivergedError(where, step)


def _rows(found: Sequence[Tensor]) -> Tensor:
    """Return which rows are finite."""
    return torch.cat([t.reshape(len(t), -1).sum(1).isfinite() for t in found])
