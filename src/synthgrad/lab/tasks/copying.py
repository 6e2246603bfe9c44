"""Copy and Repeat Copy: read characters, then write them, once or several times (DNI §3.2).

An episode of Repeat Copy with characters ``a b`` and count 2, one column for each step:

    input    start  a  b  go·2   –  –  –  –   –
    target     ·    ·  ·   ·  →  a  b  a  b  stop

The first target is asked for at the step after ``go``: the network writes without seeing what it wrote.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import mean
from typing import Any

import torch
from torch import Tensor

from ...core import ConfigError

__all__ = ["IGNORED", "CopyEpisodes", "Curriculum", "EpisodeBatch"]

#: Target of steps at which nothing is asked for, as ``cross_entropy`` leaves them out by default.
IGNORED = -100

_COUNT_UNIT = 10.0  # a count is given as a number of about 1


@dataclass(frozen=True, slots=True)
class EpisodeBatch:
    """A batch of episodes of one length.

    Attributes:
        x: ``(B, L, F)`` float32.
        y: ``(B, L)`` int64, `IGNORED` where nothing is asked for.
        first: the first step at which something is asked for.
    """

    x: Tensor
    y: Tensor
    first: int


class CopyEpisodes:
    """Draws episodes on a device, a whole batch at once.

    Args:
        symbols: characters of the alphabet; the text at hand does not say how many the paper had.
        repeat: Repeat Copy, where the episode gives a count.
        seed: of the draws.
        device: where episodes are made.

    Attributes:
        inputs: ``F``: a plane for each character, start, go, blank, and the count.
        classes: outputs: characters and stop.
        blank: the plane of steps at which there is nothing to read.

    Raises:
        ConfigError: if there are fewer than two characters.
    """

    def __init__(self, symbols: int = 2, *, repeat: bool = False, seed: int = 0, device: str = "cpu") -> None:
        if symbols < 2:
            raise ConfigError(
                f"symbols={symbols}: expected at least 2 characters, or there is nothing to copy"
            )
        self.symbols = symbols
        self.repeat = repeat
        self.inputs = symbols + 3 + repeat
        self.classes = symbols + 1
        self.blank = symbols + 2
        self.device = torch.device(device)
        self.generator = torch.Generator(self.device).manual_seed(seed)

    def draw(self, batch_size: int, length: int, count: int = 1) -> EpisodeBatch:
        """Return ``batch_size`` episodes of ``length`` characters, to be written ``count`` times.

        Raises:
            ConfigError: if a number is under 1, or a count is given that the task has no input for.
        """
        if min(batch_size, length, count) < 1:
            raise ConfigError(
                f"batch of {batch_size}, length {length}, count {count}: expected numbers of at least 1"
            )
        if count > 1 and not self.repeat:
            raise ConfigError(f"count {count}: this task copies once; make it with repeat=True")
        v, n = self.symbols, length * count
        go = 1 + length  # the step of the go sign
        characters = torch.randint(
            v, (batch_size, length), generator=self.generator, device=self.device
        )  # (B, N)
        tokens = torch.full((batch_size, go + n + 2), self.blank, device=self.device)
        tokens[:, 0], tokens[:, 1:go], tokens[:, go] = v, characters, v + 1
        x = torch.zeros(*tokens.shape, self.inputs, device=self.device)
        x.scatter_(2, tokens.unsqueeze(2), 1.0)
        if self.repeat:
            x[:, go, v + 3] = count / _COUNT_UNIT
        y = torch.full_like(tokens, IGNORED)
        y[:, go + 1 : go + 1 + n] = characters.repeat(1, count)
        y[:, go + 1 + n] = v
        return EpisodeBatch(x, y, go + 1)


@dataclass
class Curriculum:
    """Lengthens the task when it is solved: Copy by a character, Repeat Copy by character and count in turn.

    Solved is a length at which the mean over the last `smooth` batches is under `threshold` bits a character.
    Every batch is drawn anew and measured before it is learned from.

    Attributes:
        repeat: is it Repeat Copy?
        threshold: bits per character (DNI §3.2, as recalled).
        smooth: batches.
        length, count: characters and repetitions of the next episode.
        solved: the longest ``T_task`` that was solved, ``N · R + 3``; 0 before the first.
    """

    repeat: bool = False
    threshold: float = 0.15
    smooth: int = 10
    length: int = 1
    count: int = 1
    longest_solved: int = 0
    _recent: list[float] = field(default_factory=list[float], repr=False)

    @property
    def task_length(self) -> int:
        """``T_task`` of the next episode."""
        return self.length * self.count + 3

    def update(self, bits: float) -> bool:
        """Take note of a batch's bits per character; return whether that solved its length."""
        self._recent = [*self._recent[1 - self.smooth :], bits] if self.smooth > 1 else [bits]
        if len(self._recent) < self.smooth or mean(self._recent) >= self.threshold:
            return False
        self.longest_solved = self.task_length
        if self.repeat and self.length > self.count:
            self.count += 1
        else:
            self.length += 1
        self._recent = []
        return True

    def state_dict(self) -> dict[str, Any]:
        """Return where it stands."""
        return {
            "length": self.length,
            "count": self.count,
            "solved": self.longest_solved,
            "recent": list(self._recent),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up where `state_dict` stood."""
        self.length, self.count, self.longest_solved = state["length"], state["count"], state["solved"]
        self._recent = list(state["recent"])
