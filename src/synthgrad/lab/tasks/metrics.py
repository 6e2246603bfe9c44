"""Bits per character: how well a network predicts a text."""

from __future__ import annotations

import math
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...core import ConfigError
from ...core.modes import evaluating

__all__ = ["StatefulNetwork", "bits", "bits_per_char"]


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
    y = F.pad(tokens[1:].long(), (0, room - n), value=-100).view(batch_size, length)  # -100: ignored
    total = torch.zeros((), dtype=torch.float64, device=tokens.device)
    with _evaluating(net):
        state = net.initial_state(batch_size)
        for start in range(0, length, unroll):
            logits, state = net(x[:, start : start + unroll], state)
            losses = F.cross_entropy(
                logits.flatten(0, 1).to(torch.promote_types(logits.dtype, torch.float32)),
                y[:, start : start + unroll].flatten(),
                reduction="none",
            )
            total += losses.sum(dtype=torch.float64)  # a float32 sum would lose small terms
    return bits(total.item() / n)


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
