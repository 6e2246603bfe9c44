"""Nats per token and bits per character: how well a network predicts a text."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...core import ConfigError, ShapeError
from ...core.modes import evaluating
from .tokens import TokenText

__all__ = ["StatefulNetwork", "TokenLoss", "bits", "bits_per_char", "token_loss"]
__all__ += ["token_loss_of"]

#: Target of a place where nothing is predicted.
_IGNORED = -100


class StatefulNetwork(Protocol):
    """The interface of networks that carry a state, such as those in ``recurrent.py``."""

    training: bool

    def initial_state(self, batch_size: int) -> Any: ...

    def __call__(self, x: Tensor, state: Any, /) -> tuple[Tensor, Any]: ...

    def train(self, mode: bool = True) -> Any: ...


def bits(nats: float) -> float:
    """Convert an entropy or a cross-entropy from nats to bits.

    >>> bits(math.log(8))
    3.0
    """
    return nats / math.log(2)


@torch.no_grad()
def bits_per_char(net: StatefulNetwork, tokens: Tensor, batch_size: int, unroll: int) -> float:
    """Return a network's mean cross-entropy on a text in bits per character, in evaluation mode.

    The text is cut into rows as in `TextStream`, but no character is left out: every one but the first is predicted
    once. Each row starts from the initial state, so its first characters are predicted from little context. The figure
    is exact with one row and slightly too high with many. The length of an unroll changes only the memory needed.

    Args:
        net: network that maps tokens ``(B, T)`` to logits ``(B, T, classes)``, on the device of ``tokens``.
        tokens: text, ``(N,)`` of any integer dtype, such as ``Text.valid``.
        batch_size: number of rows.
        unroll: number of characters of each row in one forward pass.

    Raises:
        ConfigError: if there are more rows than characters to predict, or ``unroll`` is under 1.
    """
    n = len(tokens) - 1
    if not 1 <= batch_size <= n:
        raise ConfigError(
            f"batch size {batch_size}: expected 1 to {max(n, 1)} rows for {n + 1} characters; use fewer rows or a "
            "longer text"
        )
    if unroll < 1:
        raise ConfigError(f"unroll of {unroll}: expected at least 1")
    length = -(-n // batch_size)  # rounded up: the last rows may be shorter, or empty
    room = length * batch_size
    x = F.pad(tokens[:-1].long(), (0, room - n)).view(batch_size, length)
    y = F.pad(tokens[1:].long(), (0, room - n), value=_IGNORED).view(batch_size, length)
    total = torch.zeros((), dtype=torch.float64, device=tokens.device)
    with _evaluating(net):
        state = net.initial_state(batch_size)
        for start in range(0, length, unroll):
            logits, state = net(x[:, start : start + unroll], state)
            total += _sum_of_losses(logits, y[:, start : start + unroll])
    return bits(total.item() / n)


class TokenLoss(NamedTuple):
    """How well a network predicts a text.

    Attributes:
        nats_per_token: mean cross-entropy of the predicted tokens.
        bits_per_char: the same information in bits, over the characters that begin in them.
        num_tokens: number of predicted tokens.
        num_characters: number of those characters.
    """

    nats_per_token: float
    bits_per_char: float
    num_tokens: int
    num_characters: int


def token_loss(
    net: nn.Module, text: TokenText, tokens: Tensor, context: int, batch_size: int = 32
) -> TokenLoss:
    """Return a language model's loss on a part of a text, in evaluation mode; see `token_loss_of`."""
    with evaluating(net):
        found = token_loss_of(net, text, tokens, context, batch_size)
    assert found is not None
    return found


@torch.no_grad()
def token_loss_of(
    predict: Callable[[Tensor], Tensor | None],
    text: TokenText,
    tokens: Tensor,
    context: int,
    batch_size: int = 32,
) -> TokenLoss | None:
    """Return the loss of predictions on a part of a text; None if none are returned, as by a stage that is not the last.

    The part is cut into windows that do not overlap, and every token but the first is predicted once: the last window
    is shorter, and padded with targets that do not count. The first tokens of a window are predicted from little
    context, so the figures are slightly too high.

    Args:
        predict: takes token ids ``(B, T)`` int64, returns scores ``(B, T, V)``, on the device of ``tokens``.
        text: the text, which knows the characters of its tokens.
        tokens: the part, ``(N,)`` of any integer dtype, such as ``text.valid``.
        context: ``T``, number of tokens to predict in a window.
        batch_size: ``B``, number of windows in one forward pass.

    Raises:
        ConfigError: if ``context`` or ``batch_size`` is under 1, or there is nothing to predict.
        ShapeError: if the scores have another shape, or ``V`` is under the vocabulary of the text.
    """
    for name, value in (("context", context), ("batch size", batch_size)):
        if value < 1:
            raise ConfigError(f"{name} {value}: expected at least 1")
    n, num_characters = len(tokens) - 1, text.tokenizer.num_characters(tokens[1:])
    if num_characters < 1:
        raise ConfigError(
            f"{text.name}: a part of {len(tokens)} tokens has no character to predict, expected one at least behind the "
            "first token; use a longer text or a smaller vocabulary"
        )
    total = torch.zeros((), dtype=torch.float64, device=tokens.device)
    predicted = False
    for start in range(0, n, context * batch_size):
        piece = tokens[start : start + context * batch_size + 1].long()
        room = -(len(piece) - 1) % context
        x = F.pad(piece[:-1], (0, room)).view(-1, context)
        y = F.pad(piece[1:], (0, room), value=_IGNORED).view(-1, context)
        scores = predict(x)
        if scores is None:
            continue
        predicted = True
        if scores.ndim != 3 or scores.shape[:2] != x.shape or scores.shape[2] < text.vocabulary:
            raise ShapeError(
                f"the network's scores have shape {tuple(scores.shape)}, expected {tuple(x.shape)} and at least "
                f"{text.vocabulary}, the tokens of {text.name}; make it for this vocabulary"
            )
        total += _sum_of_losses(scores, y)
    if not predicted:
        return None
    nats = total.item()
    return TokenLoss(nats / n, bits(nats) / num_characters, n, num_characters)


def _sum_of_losses(scores: Tensor, y: Tensor) -> Tensor:
    """Return the cross-entropy of scores ``(B, T, V)``, summed over all targets ``(B, T)`` that count; float64."""
    losses = F.cross_entropy(
        scores.flatten(0, 1).to(torch.promote_types(scores.dtype, torch.float32)),
        y.flatten(),
        ignore_index=_IGNORED,
        reduction="none",
    )
    return losses.sum(dtype=torch.float64)  # a float32 sum would lose small terms


@contextmanager
def _evaluating(net: StatefulNetwork) -> Generator[None]:
    if isinstance(net, nn.Module):
        with evaluating(net):
            yield
        return
    was_training = net.training
    net.train(False)
    try:
        yield
    finally:
        net.train(was_training)
