"""Episodes of Copy and Repeat Copy in rows side by side, each row at a place of its own.

Rows that begin together end together: every unroll of a batch is then at the same step of its episode, most of them
ask for nothing, and what tells one step from another is the same in the whole batch. Rows that begin one unroll after
the other, and go on to their next episode each on its own, have all steps in every batch (`SPREAD` = 3 here):

    unroll     0    1    2    3    4    5    6
    row 0     |a0   a1   a2  |d0   d1   d2  |g0
    row 1      –   |b0   b1   b2  |e0   e1   e2
    row 2      –    –   |c0   c1   c2  |f0   f1
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...core import ConfigError
from .copying import IGNORED, CopyEpisodes, EpisodeBatch

__all__ = ["SPREAD", "EpisodeStream", "EpisodeUnroll"]

#: Over how many unrolls the rows begin.
SPREAD = 16

_KEPT = ("at", "ends", "asked", "x", "y")


@dataclass(frozen=True, slots=True)
class EpisodeUnroll:
    """An unroll of all rows, each a part of an episode of its own.

    Attributes:
        x: ``(B, T, F)`` float32; blank behind the end of an episode.
        y: ``(B, T)`` int64, `IGNORED` where nothing is asked for.
        fresh: the rows whose episode begins here: ``(B,)`` bool, or one truth where it holds for all of them or none.
        ended: likewise, the rows whose episode ends here, wherever in the unroll.
        steps_left: ``(B,)`` int64, steps that are left of the episode behind this unroll; 0 where it ends.
        task_lengths: of the rows' episodes, ``(B,)`` int64 on the CPU: asked characters, plus two.
        ended_rows: numbers of the rows whose episode ends here, ``(n,)`` int64 on the CPU.
        has_targets: is anything asked for, of any row?
    """

    x: Tensor
    y: Tensor
    fresh: Tensor | bool
    ended: Tensor | bool
    steps_left: Tensor
    task_lengths: Tensor
    ended_rows: Tensor
    has_targets: bool


class EpisodeStream:
    """Rows of episodes side by side. Where a row stands is known on the CPU: nothing waits for the device.

    Args:
        task: draws the episodes, and has the device.
        rows: ``B``.
        size: returns characters and count of the episodes that are drawn next; a curriculum changes it on the way.
            An episode that is under way keeps its length.
        spread: over how many unrolls the rows begin; before, they see blanks. 1 for all at once.

    Raises:
        ConfigError: if a number is under 1.
    """

    def __init__(
        self, task: CopyEpisodes, rows: int, size: Callable[[], tuple[int, int]], spread: int = SPREAD
    ) -> None:
        if min(rows, spread) < 1:
            raise ConfigError(f"rows={rows}, spread={spread}: expected numbers of at least 1")
        self.task = task
        self.rows = rows
        self.size = size
        self.spread = spread
        self._at = torch.zeros(rows, dtype=torch.int64)  # the next step of each row
        self._ends = torch.zeros(rows, dtype=torch.int64)  # steps of its episode; 0 before the first
        self._asked = torch.zeros(rows, dtype=torch.int64)
        self._x = torch.empty(rows, 0, task.inputs, device=task.device)
        self._y = torch.empty(rows, 0, dtype=torch.int64, device=task.device)

    def next_unroll(self, unroll: int) -> EpisodeUnroll:
        """Return the next ``unroll`` steps of every row; rows that end begin their next episode after them.

        Raises:
            ConfigError: if ``unroll`` is under 1.
        """
        if unroll < 1:
            raise ConfigError(f"unroll of {unroll}: expected at least 1 step")
        over = (self._at >= self._ends).nonzero().squeeze(1)
        if len(over):
            self._begin(over, unroll)
        self._grow(int(self._at.max()) + unroll)
        device = self.task.device
        steps = (self._at[:, None] + torch.arange(unroll)).to(device)  # (B, T)
        own = torch.arange(self.rows, device=device)[:, None]
        fresh = self._at == 0
        first = self._ends - self._asked  # the first step of each row that asks for something
        self._at = self._at + unroll
        ended = self._at >= self._ends
        return EpisodeUnroll(
            self._x[own, steps],
            self._y[own, steps],
            self._rows_of(fresh),
            self._rows_of(ended),
            (self._ends - self._at).clamp_min(0).to(device),
            self._asked + 2,  # asked: the characters and a stop
            ended.nonzero().squeeze(1),
            bool((self._at > first).any()),
        )

    def _rows_of(self, mask: Tensor) -> Tensor | bool:
        # A device need not be asked what is known here, and an engine leaves out what holds for no row.
        if bool(mask.all()):
            return True
        return mask.to(self.task.device) if bool(mask.any()) else False

    def _begin(self, rows: Tensor, unroll: int) -> None:
        """Draw the next episodes of these rows; the very first ones wait for their turn."""
        first = not bool(self._ends.any())
        episode = self.task.draw(len(rows), *self.size())
        length = episode.y.shape[1]
        wait = (rows % self.spread) * unroll if first else torch.zeros_like(rows)
        self._grow(length + int(wait.max()))
        self._write(rows, episode, wait)
        self._at[rows] = 0
        self._ends[rows] = wait + length
        self._asked[rows] = length - episode.first

    def _grow(self, width: int) -> None:
        """Have room for so many steps of every row."""
        more = width - self._y.shape[1]
        if more > 0:
            x, y = self._blanks(self.rows, more)
            self._x, self._y = torch.cat([self._x, x], 1), torch.cat([self._y, y], 1)

    def _write(self, rows: Tensor, episode: EpisodeBatch, wait: Tensor) -> None:
        """Write episodes behind ``wait`` blanks each, and blanks behind them."""
        device = self.task.device
        x, y = self._blanks(len(rows), self._y.shape[1])
        own = torch.arange(len(rows), device=device)[:, None]
        steps = (wait[:, None] + torch.arange(episode.y.shape[1])).to(device)
        x[own, steps], y[own, steps] = episode.x, episode.y
        at = rows.to(device)
        self._x[at], self._y[at] = x, y

    def _blanks(self, rows: int, steps: int) -> tuple[Tensor, Tensor]:
        x = self._x.new_zeros(rows, steps, self.task.inputs)
        x[:, :, self.task.blank] = 1.0
        return x, self._y.new_full((rows, steps), IGNORED)

    def state_dict(self) -> dict[str, Any]:
        """Return where the rows stand, without the task's generator."""
        return {name: getattr(self, f"_{name}").clone() for name in _KEPT}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from where a stream of as many rows stood.

        Raises:
            ConfigError: if it had another number of rows.
        """
        if len(state["at"]) != self.rows:
            raise ConfigError(
                f"the state is that of a stream of {len(state['at'])} rows, expected {self.rows}"
            )
        for name in _KEPT:
            # A copy: rows are written in place.
            setattr(self, f"_{name}", state[name].to(getattr(self, f"_{name}").device, copy=True))
