"""A text as a stream of unrolls, in parallel rows, or as windows that are drawn at random."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ...core import ConfigError, ShapeError

__all__ = ["TextStream", "TokenWindows", "Unroll"]


class Unroll(NamedTuple):
    """The next ``T`` characters of every row.

    Attributes:
        x: inputs, ``(B, T)`` int64.
        y: targets, ``(B, T)`` int64: ``x`` one character later.
        first: whether an episode begins here, so that the network starts from its initial state.
        last: whether the episode ends here, so that no gradient comes from the next unroll.
    """

    x: Tensor
    y: Tensor
    first: bool
    last: bool


class TextStream:
    """Cuts a text into rows of equal length and reads them in parallel, one unroll after another.

    Row ``b`` reads the characters ``b n`` to ``(b + 1) n - 1`` and predicts those one later, with
    ``n = (N - 1) // B``. So every character but the first is predicted once, except for fewer than ``B`` at the end of
    the text. One pass is an *episode*: the state is carried from unroll to unroll until the next one does not fit any
    more. The rest of the rows, shorter than an unroll, is then left out. The length of unrolls may change at any time.

    A stream draws no random numbers and copies nothing: its unrolls are slices of the text, on the text's device.

    Args:
        tokens: text, ``(N,)`` of any integer dtype, such as ``Text.train``.
        batch_size: ``B``, number of rows.

    Attributes:
        batch_size: number of rows.
        length: ``n``, number of characters to predict in a row, and the greatest length of an unroll.
        position: number of characters of each row read in the present episode.
        episode: number of the present episode, from 0.

    Raises:
        ShapeError: if ``tokens`` is not one-dimensional or has no integer dtype.
        ConfigError: if there are too few characters for so many rows.

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
        _check_tokens(tokens)
        if not 1 <= batch_size < len(tokens):
            raise ConfigError(
                f"batch size {batch_size}: expected 1 to {len(tokens) - 1} rows for {len(tokens)} characters, so that "
                "every row has one to predict; use fewer rows or a longer text"
            )
        self.batch_size = batch_size
        self.length = (len(tokens) - 1) // batch_size
        self.position = 0
        self.episode = 0
        # A view. Rows overlap by one character: it is the last target of one row and the first input of the next.
        self._rows = tokens.unfold(0, self.length + 1, self.length)[:batch_size]  # (B, n + 1)

    def check(self, unroll: int) -> None:
        """Raise a ConfigError unless an unroll of this length fits into a row."""
        if not 1 <= unroll <= self.length:
            raise ConfigError(
                f"unroll of {unroll}: expected 1 to {self.length}, the characters to predict in each of "
                f"{self.batch_size} rows; use a shorter unroll, fewer rows or a longer text"
            )

    def next_unroll(self, unroll: int) -> Unroll:
        """Return the next ``unroll`` characters of every row, and advance.

        Args:
            unroll: ``T``. If fewer characters are left, the next episode begins.

        Raises:
            ConfigError: if a row is shorter than that.
        """
        self.check(unroll)
        if self.position + unroll > self.length:  # this unroll is longer than the one before it
            self._begin()
        start, end = self.position, self.position + unroll
        window = self._rows[:, start : end + 1].long()  # (B, T + 1)
        last = end + unroll > self.length
        if last:
            self._begin()  # at once, so that `last` holds whatever the length of the next unroll
        else:
            self.position = end
        return Unroll(window[:, :-1], window[:, 1:], start == 0, last)

    def _begin(self) -> None:
        self.position = 0
        self.episode += 1

    def state_dict(self) -> dict[str, Any]:
        """Return the position, for `load_state_dict`."""
        return {
            "batch_size": self.batch_size,
            "length": self.length,
            "position": self.position,
            "episode": self.episode,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the position of a stream with the same text and rows.

        Raises:
            ConfigError: if the number or length of the rows differs.
        """
        if (state["batch_size"], state["length"]) != (self.batch_size, self.length):
            raise ConfigError(
                f"the state is that of a stream of {state['batch_size']} rows of {state['length']} characters, "
                f"expected {self.batch_size} rows of {self.length}; use the same text and batch size"
            )
        self.position = state["position"]
        self.episode = state["episode"]


class TokenWindows:
    """Windows of a text, drawn at random with replacement, as batches for a language model.

    A batch depends on the seed and its number alone. So a run that is resumed at a step goes on with the windows that it
    would have had, and every method sees the same ones; there is no state to save.

    Args:
        tokens: text, ``(N,)`` of any integer dtype, such as ``TokenText.train``.
        context: ``T``, number of tokens to predict in a window.
        batch_size: ``B``, number of windows in a batch.
        seed: at least 0.

    Raises:
        ShapeError: if ``tokens`` is not one-dimensional or has no integer dtype.
        ConfigError: if a number is too small, or the text is shorter than a window.

    >>> import torch
    >>> windows = TokenWindows(torch.arange(100), context=4, batch_size=2, seed=0)
    >>> x, y = windows.batch(7)
    >>> x.shape, bool((y == x + 1).all()), bool((windows.batch(7)[0] == x).all())
    (torch.Size([2, 4]), True, True)
    """

    def __init__(self, tokens: Tensor, context: int, batch_size: int, seed: int) -> None:
        _check_tokens(tokens)
        for name, value, least in (("context", context, 1), ("batch size", batch_size, 1), ("seed", seed, 0)):
            if value < least:
                raise ConfigError(f"{name} {value}: expected at least {least}")
        if len(tokens) <= context:
            raise ConfigError(
                f"context of {context}: expected 1 to {max(len(tokens) - 1, 1)} for a text of {len(tokens)} tokens, so "
                "that each has one to predict; use a shorter context or a longer text"
            )
        self.context = context
        self.batch_size = batch_size
        self.seed = seed
        self._windows = tokens.unfold(0, context + 1, 1)  # (N - T, T + 1), a view

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Return the batch of a number, from 0: inputs and the tokens after them, both ``(B, T)`` int64."""
        # NumPy mixes seed and step; PyTorch's generator on the CPU takes 32 bits of one seed.
        draw = np.random.default_rng((self.seed, step)).integers(len(self._windows), size=self.batch_size)
        window = self._windows[torch.from_numpy(draw).to(self._windows.device)].long()  # (B, T + 1)
        return window[:, :-1], window[:, 1:]


def _check_tokens(tokens: Tensor) -> None:
    if tokens.ndim != 1 or tokens.is_floating_point() or tokens.is_complex():
        raise ShapeError(
            f"tokens have shape {tuple(tokens.shape)} and dtype {tokens.dtype}, expected (N,) of integers; "
            "pass one part of a text, such as Text.train"
        )
