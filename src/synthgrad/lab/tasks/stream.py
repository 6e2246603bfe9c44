"""A text as a stream of unrolls for truncated backpropagation through time, many rows side by side."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from ...core import ConfigError, ShapeError

__all__ = ["TextStream", "Unroll"]


class Unroll(NamedTuple):
    """A stretch of all rows.

    Attributes:
        x: what a network reads, ``(B, T)`` int64.
        y: what it is to predict, ``(B, T)`` int64: ``x`` one character later.
        first: an episode begins here: start from the initial state.
        last: the episode ends here: the next unroll begins a new one, and no gradient comes from beyond.
    """

    x: Tensor
    y: Tensor
    first: bool
    last: bool


class TextStream:
    """A text cut in rows of equal length that are read side by side, from their beginning to their end.

    Row ``b`` begins where row ``b - 1`` ends: it reads the characters ``b n`` to ``(b + 1) n - 1`` and
    predicts those one later, with ``n = (N - 1) // B``. So every character but the first is predicted once,
    save a rest of fewer than ``B`` at the end of the text. One pass is an *episode*: states are carried from
    unroll to unroll, until one of that length fits no more. The rest of the rows, shorter than an unroll, is
    left out then. Unrolls may grow or shrink on the way.

    Nothing is drawn, and nothing copied: what a stream gives are slices of the text, on its device.

    Args:
        tokens: ``(N,)`` of any integer dtype, such as ``Text.train``.
        batch_size: ``B``.

    Attributes:
        batch_size: number of rows.
        length: ``n``, characters to predict in a row; an unroll is at most that long.
        position: characters of a row that the present episode has read.
        episode: number of the present episode, from 0.

    Raises:
        ShapeError: if ``tokens`` is no row of integers.
        ConfigError: if there are not enough characters for so many rows.

    >>> import torch
    >>> stream = TextStream(torch.arange(9), 2)
    >>> stream.next_unroll(3)
    Unroll(x=tensor([[0, 1, 2],
            [4, 5, 6]]), y=tensor([[1, 2, 3],
            [5, 6, 7]]), first=True, last=True)
    >>> stream.next_unroll(2).x, stream.next_unroll(2).x
    (tensor([[0, 1],
            [4, 5]]), tensor([[2, 3],
            [6, 7]]))
    """

    def __init__(self, tokens: Tensor, batch_size: int) -> None:
        if tokens.ndim != 1 or tokens.is_floating_point() or tokens.is_complex():
            raise ShapeError(
                f"tokens have shape {tuple(tokens.shape)} and dtype {tokens.dtype}, expected (N,) of integers; "
                "give one part of a text"
            )
        if not 1 <= batch_size < len(tokens):
            raise ConfigError(
                f"batch size {batch_size}: expected 1 to {len(tokens) - 1} for {len(tokens)} characters, so that "
                "every row has one to predict; give fewer rows or a longer text"
            )
        self.batch_size = batch_size
        self.length = (len(tokens) - 1) // batch_size
        self.position = 0
        self.episode = 0
        # A view: rows overlap by one character, the last that a row predicts and the first that the next reads.
        self._rows = tokens.unfold(0, self.length + 1, self.length)[:batch_size]  # (B, n + 1)

    def check(self, unroll: int) -> None:
        """Raise ConfigError if no row is as long as an unroll."""
        if not 1 <= unroll <= self.length:
            raise ConfigError(
                f"unroll of {unroll}: expected 1 to {self.length}, the characters to predict in each of "
                f"{self.batch_size} rows; take a shorter unroll, fewer rows or a longer text"
            )

    def next_unroll(self, unroll: int) -> Unroll:
        """Return the next ``unroll`` characters of every row, and go on behind them.

        Args:
            unroll: ``T``. Where fewer are left, the next episode begins.

        Raises:
            ConfigError: if no row is that long.
        """
        self.check(unroll)
        if self.position + unroll > self.length:  # an unroll longer than the one before it
            self._begin()
        start, end = self.position, self.position + unroll
        window = self._rows[:, start : end + 1].long()  # (B, T + 1)
        last = end + unroll > self.length
        if last:
            self._begin()  # at once: what was said of the next unroll holds, whatever its length
        else:
            self.position = end
        return Unroll(window[:, :-1], window[:, 1:], start == 0, last)

    def _begin(self) -> None:
        self.position = 0
        self.episode += 1

    def state_dict(self) -> dict[str, Any]:
        """Return where the stream is."""
        return {
            "batch_size": self.batch_size,
            "length": self.length,
            "position": self.position,
            "episode": self.episode,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from where a stream of the same text and rows was.

        Raises:
            ConfigError: if it had other rows.
        """
        if (state["batch_size"], state["length"]) != (self.batch_size, self.length):
            raise ConfigError(
                f"the state is that of a stream of {state['batch_size']} rows of {state['length']} characters, "
                f"expected {self.batch_size} rows of {self.length}; go on with the same text and batch size"
            )
        self.position = state["position"]
        self.episode = state["episode"]
