"""How well a network predicts a text, in bits."""

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
    """What is asked of a network: the form of those in ``recurrent.py`` and ``transformer.py``."""

    training: bool

    def initial_state(self, batch_size: int) -> Any: ...

    def __call__(self, x: Tensor, state: Any, /) -> tuple[Tensor, Any]: ...

    def train(self, mode: bool = True) -> Any: ...


def bits(nats: float) -> float:
    """Return an entropy or a cross-entropy in bits, given one in nats.

    >>> bits(math.log(8))
    3.0
    """
    return nats / math.log(2)


@torch.no_grad()
def bits_per_char(net: StatefulNetwork, tokens: Tensor, batch_size: int, unroll: int) -> float:
    """Return the mean number of bits that a network needs for a character of a text, in evaluation mode.

    Every character but the first is predicted once, those of the last unroll and of the last row included:
    the text is cut in rows as in `TextStream`, but none is left out. A row starts from the initial state, so the
    first characters of each are predicted from little. With one row the figure is exact, with many it is
    slightly too high; the length of unrolls changes nothing but the memory that it takes.

    Args:
        net: gives logits ``(B, T, classes)`` for tokens ``(B, T)``, on the device of ``tokens``.
        tokens: ``(N,)`` of any integer dtype, such as ``Text.valid``.
        batch_size: rows side by side.
        unroll: characters of each row at a time.

    Raises:
        ConfigError: if there are more rows than characters to predict, or an unroll has none.
    """
    n = len(tokens) - 1
    if not 1 <= batch_size <= n:
        raise ConfigError(
            f"batch size {batch_size}: expected 1 to {max(n, 1)} for {n + 1} characters; give fewer rows or a "
            "longer text"
        )
    if unroll < 1:
        raise ConfigError(f"unroll of {unroll}: expected at least 1")
    length = -(-n // batch_size)  # rounded up: the last rows may be shorter, or empty
    room = length * batch_size
    x = F.pad(tokens[:-1].long(), (0, room - n)).view(batch_size, length)
    y = F.pad(tokens[1:].long(), (0, room - n), value=-100).view(batch_size, length)  # -100: not counted
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
            total += losses.sum(dtype=torch.float64)  # a sum of single precision would lose small ones
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
