"""Copy and Repeat Copy: read characters, then write them, once or several times (DNI §3.2).

An episode of Repeat Copy with characters ``a b`` and count 2, one column for each step:

    input    start  a  b  go·2   –  –  –  –   –
    target     ·    ·  ·   ·  →  a  b  a  b  stop

The first target belongs to the step after ``go``. The network does not see its own outputs.
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

#: Target of steps without a target; ``cross_entropy`` ignores this value by default.
IGNORED = -100

_COUNT_UNIT = 10.0  # scales the count to about 1, the size of the other inputs


@dataclass(frozen=True, slots=True)
class EpisodeBatch:
    """A batch of episodes of one length.

    Attributes:
        x: inputs, ``(B, L, F)`` float32.
        y: targets, ``(B, L)`` int64; `IGNORED` at steps without a target.
        first: index of the first step with a target.
    """

    x: Tensor
    y: Tensor
    first: int


class CopyEpisodes:
    """Draws batches of episodes at random, on a device.

    Args:
        symbols: number of characters in the alphabet. We do not know the paper's number.
        repeat: whether to draw Repeat Copy, whose input contains a count.
        seed: seed of the random generator.
        device: device of the tensors.

    Attributes:
        inputs: ``F``, number of input features: one for each character, for start, go, blank, and the count.
        classes: number of outputs: the characters and stop.
        blank: index of the feature that marks a step with nothing to read.

    Raises:
        ConfigError: if there are fewer than two characters.
    """

    def __init__(self, symbols: int = 2, *, repeat: bool = False, seed: int = 0, device: str = "cpu") -> None:
        if symbols < 2:
            raise ConfigError(
                f"symbols={symbols}: expected at least 2, because one character alone carries no information"
            )
        self.symbols = symbols
        self.repeat = repeat
        self.inputs = symbols + 3 + repeat
        self.classes = symbols + 1
        self.blank = symbols + 2
        self.device = torch.device(device)
        self.generator = torch.Generator(self.device).manual_seed(seed)

    def draw(self, batch_size: int, length: int, count: int = 1) -> EpisodeBatch:
        """Draw ``batch_size`` episodes of ``length`` characters, to be written ``count`` times.

        Raises:
            ConfigError: if a number is under 1, or ``count`` is over 1 in the Copy task.
        """
        if min(batch_size, length, count) < 1:
            raise ConfigError(
                f"batch of {batch_size}, length {length}, count {count}: expected numbers of at least 1"
            )
        if count > 1 and not self.repeat:
            raise ConfigError(
                f"count {count}: expected 1, because this is the Copy task; build it with repeat=True"
            )
        v, n = self.symbols, length * count
        go = 1 + length  # step of the go sign
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
    """Makes the task longer whenever it is solved.

    Copy grows by one character; Repeat Copy grows by a character and by a repetition in turn. A length is solved when
    the mean over the last `smooth` batches is under `threshold` bits per character. Every batch is drawn anew and
    measured before the network learns from it.

    Attributes:
        repeat: whether the task is Repeat Copy.
        threshold: bits per character under which a length is solved (DNI §3.2, quoted from memory).
        smooth: number of batches to average over.
        length, count: number of characters and repetitions in the next episode.
        longest_solved: the longest ``T_task = N · R + 3`` solved so far; 0 if there is none.
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
        """Add a batch's bits per character; return whether its length is now solved."""
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
        """Return lengths and recent measurements, for `load_state_dict`."""
        return {
            "length": self.length,
            "count": self.count,
            "solved": self.longest_solved,
            "recent": list(self._recent),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.length, self.count, self.longest_solved = state["length"], state["count"], state["solved"]
        self._recent = list(state["recent"])
