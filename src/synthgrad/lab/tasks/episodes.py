"""Episodes of Copy and Repeat Copy in parallel rows, each row at its own step.

If all rows began together, every unroll of a batch would be at the same step of its episode: most unrolls would have no
target, and a rule could not compare different steps within a batch. So the rows begin one unroll after the other, and
each continues with its next episode on its own. Every batch then mixes all steps (here with `SPREAD` = 3):

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

#: Number of unrolls over which the rows begin.
SPREAD = 16

_STATE_FIELDS = ("at", "ends", "asked", "x", "y")


@dataclass(frozen=True, slots=True)
class EpisodeUnroll:
    """The next ``T`` steps of every row; each row is in an episode of its own.

    Attributes:
        x: inputs, ``(B, T, F)`` float32; blank after the end of an episode.
        y: targets, ``(B, T)`` int64; `IGNORED` at steps without a target.
        fresh: whether a row's episode begins with this unroll, ``(B,)`` bool; a single bool if it is the same for all.
        ended: whether a row's episode ends within this unroll, in the same form.
        steps_left: number of steps of each row's episode after this unroll, ``(B,)`` int64.
        task_lengths: ``T_task`` of each row's episode, ``(B,)`` int64 on the CPU: its number of targets plus two.
        ended_rows: indices of the rows whose episode ends within this unroll, ``(n,)`` int64 on the CPU.
        has_targets: whether any row has a target.
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
    """Parallel rows of episodes. The rows' positions are on the CPU, so no step waits for the device.

    Args:
        episodes: source of the episodes; it determines the device.
        rows: ``B``, number of rows.
        size: function that returns length and count of the next episodes, such as those of a curriculum. Episodes that
            have begun keep theirs.
        spread: number of unrolls over which the rows begin; a row sees blanks until then. 1 starts all at once.

    Raises:
        ConfigError: if a number is under 1.
    """

    def __init__(
        self, episodes: CopyEpisodes, rows: int, size: Callable[[], tuple[int, int]], spread: int = SPREAD
    ) -> None:
        if min(rows, spread) < 1:
            raise ConfigError(f"rows={rows}, spread={spread}: expected numbers of at least 1")
        self.episodes = episodes
        self.rows = rows
        self.size = size
        self.spread = spread
        self._at = torch.zeros(rows, dtype=torch.int64)  # next step of each row
        self._ends = torch.zeros(rows, dtype=torch.int64)  # end of each row's episode; 0 before the first
        self._asked = torch.zeros(rows, dtype=torch.int64)  # number of targets of each row's episode
        self._x = torch.empty(rows, 0, episodes.inputs, device=episodes.device)
        self._y = torch.empty(rows, 0, dtype=torch.int64, device=episodes.device)

    def next_unroll(self, unroll: int) -> EpisodeUnroll:
        """Return the next ``unroll`` steps of every row; a row whose episode ends begins another in the next unroll.

        Raises:
            ConfigError: if ``unroll`` is under 1.
        """
        if unroll < 1:
            raise ConfigError(f"unroll of {unroll}: expected at least 1 step")
        over = (self._at >= self._ends).nonzero().squeeze(1)
        if len(over):
            self._begin(over, unroll)
        self._grow(int(self._at.max()) + unroll)
        device = self.episodes.device
        steps = (self._at[:, None] + torch.arange(unroll)).to(device)  # (B, T)
        own = torch.arange(self.rows, device=device)[:, None]
        fresh = self._at == 0
        first = self._ends - self._asked  # first step of each row that has a target
        self._at = self._at + unroll
        ended = self._at >= self._ends
        return EpisodeUnroll(
            self._x[own, steps],
            self._y[own, steps],
            self._rows_of(fresh),
            self._rows_of(ended),
            (self._ends - self._at).clamp_min(0).to(device),
            self._asked + 2,  # the targets are N · R characters and a stop, and T_task is N · R + 3
            ended.nonzero().squeeze(1),
            bool((self._at > first).any()),
        )

    def _rows_of(self, mask: Tensor) -> Tensor | bool:
        # A bool spares the engine a synchronisation with the device, and False spares it the work.
        if bool(mask.all()):
            return True
        return mask.to(self.episodes.device) if bool(mask.any()) else False

    def _begin(self, rows: Tensor, unroll: int) -> None:
        """Draw the next episodes of these rows; the first ones of all begin at different unrolls."""
        first = not bool(self._ends.any())
        episode = self.episodes.draw(len(rows), *self.size())
        length = episode.y.shape[1]
        wait = (rows % self.spread) * unroll if first else torch.zeros_like(rows)
        self._grow(length + int(wait.max()))
        self._write(rows, episode, wait)
        self._at[rows] = 0
        self._ends[rows] = wait + length
        self._asked[rows] = length - episode.first

    def _grow(self, width: int) -> None:
        """Extend the buffers to ``width`` steps of every row."""
        more = width - self._y.shape[1]
        if more > 0:
            x, y = self._blanks(self.rows, more)
            self._x, self._y = torch.cat([self._x, x], 1), torch.cat([self._y, y], 1)

    def _write(self, rows: Tensor, episode: EpisodeBatch, wait: Tensor) -> None:
        """Write episodes into rows, each after ``wait`` blanks and followed by blanks."""
        device = self.episodes.device
        x, y = self._blanks(len(rows), self._y.shape[1])
        own = torch.arange(len(rows), device=device)[:, None]
        steps = (wait[:, None] + torch.arange(episode.y.shape[1])).to(device)
        x[own, steps], y[own, steps] = episode.x, episode.y
        at = rows.to(device)
        self._x[at], self._y[at] = x, y

    def _blanks(self, rows: int, steps: int) -> tuple[Tensor, Tensor]:
        x = self._x.new_zeros(rows, steps, self.episodes.inputs)
        x[:, :, self.episodes.blank] = 1.0
        return x, self._y.new_full((rows, steps), IGNORED)

    def state_dict(self) -> dict[str, Any]:
        """Return positions and buffers of the rows; the generator of `CopyEpisodes` is not included."""
        return {name: getattr(self, f"_{name}").clone() for name in _STATE_FIELDS}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state of a stream with the same number of rows.

        Raises:
            ConfigError: if the number of rows differs.
        """
        if len(state["at"]) != self.rows:
            raise ConfigError(
                f"the state is that of a stream of {len(state['at'])} rows, expected {self.rows}; use the same batch size"
            )
        for name in _STATE_FIELDS:
            # A copy, because rows are written in place.
            setattr(self, f"_{name}", state[name].to(getattr(self, f"_{name}").device, copy=True))
