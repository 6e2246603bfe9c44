"""Two networks that count digits at different rates (DNI §3.3): the stream, and the reference networks.

Network A sees a digit at every step, and says after every ``T`` how many of the last ``T`` were odd. Network B hears
from A at every ``T``-th step, and says after every ``T²`` how many of the last ``T²`` digits were threes. Nobody tells
A to look for threes but B, so what A needs to learn must cross the interface between them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from ...core import ConfigError
from .images import Split

__all__ = ["DigitBlock", "DigitStream", "FastCounter", "SlowCounter", "counting_networks", "report_accuracy"]

FAST, SLOW = "A", "B"


@dataclass(frozen=True, slots=True)
class DigitBlock:
    """``T²`` steps of the stream, for ``B`` streams side by side.

    Attributes:
        period: ``T``.
        x: ``(T², B, C, Y, X)``, the images.
        digits: ``(T², B)`` int64.
        odd: ``(T, B)`` int64, from 0 to ``T``: odd digits in each ``T`` steps.
        threes: ``(B,)`` int64, from 0 to ``T²``: threes in all.
    """

    period: int
    x: Tensor
    digits: Tensor
    odd: Tensor
    threes: Tensor

    def __len__(self) -> int:
        return self.x.shape[0]

    def steps(self) -> Iterator[tuple[dict[str, Tensor], dict[str, Tensor]]]:
        """Yield inputs and targets of each step, by network: ``A`` and ``B``."""
        last = len(self) - 1
        for t, x in enumerate(self.x):
            targets: dict[str, Tensor] = {}
            if (t + 1) % self.period == 0:
                targets[FAST] = self.odd[t // self.period]
            if t == last:
                targets[SLOW] = self.threes
            yield {FAST: x}, targets


class DigitStream:
    """An endless stream of digits, each drawn by itself and with replacement, a block at a time.

    Args:
        split: labelled images of digits, on the device where blocks are to be.
        batch_size: ``B``, streams side by side.
        period: ``T``.
        generator: of the draws, on the CPU; they depend on nothing else.

    Raises:
        ConfigError: if a size is under 1, or there are no images.
    """

    def __init__(self, split: Split, batch_size: int, period: int, generator: torch.Generator) -> None:
        for name, value in (("batch_size", batch_size), ("period", period), ("images", len(split))):
            if value < 1:
                raise ConfigError(f"{name}={value}: expected at least 1")
        self.split = split
        self.batch_size = batch_size
        self.period = period
        self._generator = generator

    def block(self) -> DigitBlock:
        """Draw the next ``T²`` steps."""
        t = self.period
        drawn = torch.randint(len(self.split), (t * t, self.batch_size), generator=self._generator)
        drawn = drawn.to(self.split.y.device)
        digits = self.split.y[drawn]  # (T², B)
        odd = (digits % 2).view(t, t, self.batch_size).sum(1)  # (T, B)
        return DigitBlock(t, self.split.x[drawn], digits, odd, (digits == 3).sum(0))

    def state_dict(self) -> dict[str, Any]:
        """Return where the draws are."""
        return {"generator": self._generator.get_state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from where the draws were."""
        self._generator.set_state(state["generator"].cpu())


class FastCounter(nn.Module):
    """Network A: a hidden layer, an LSTM, and a report; its message is the LSTM's output.

    Args:
        in_shape: ``(C, Y, X)`` of an image.
        width: ``H``, units of the hidden layer and of the LSTM.
        counts: numbers that it can report, from 0.
    """

    def __init__(self, in_shape: Sequence[int], width: int, counts: int) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Flatten(), nn.Linear(prod(in_shape), width), nn.ReLU())
        self.cell = nn.LSTMCell(width, width)
        self.report = nn.Linear(width, counts)

    def forward(
        self, inputs: Mapping[str, Tensor], state: tuple[Tensor, Tensor] | None
    ) -> tuple[dict[str, Tensor], tuple[Tensor, Tensor]]:
        """Return ``message (B, H)``, ``report (B, counts)``, and the state ``(h, c)``, ``(B, H)`` each."""
        h, c = self.cell(self.encoder(inputs["input"]), state)
        return {"message": h, "report": self.report(h)}, (h, c)


class SlowCounter(nn.Module):
    """Network B: an LSTM on A's message, and a report.

    Args:
        width: ``H``, of the message and of the LSTM.
        counts: numbers that it can report, from 0.
    """

    def __init__(self, width: int, counts: int) -> None:
        super().__init__()
        self.cell = nn.LSTMCell(width, width)
        self.report = nn.Linear(width, counts)

    def forward(
        self, inputs: Mapping[str, Tensor], state: tuple[Tensor, Tensor] | None
    ) -> tuple[dict[str, Tensor], tuple[Tensor, Tensor]]:
        """Return ``report (B, counts)``, and the state ``(h, c)``, ``(B, H)`` each."""
        h, c = self.cell(inputs[FAST], state)
        return {"report": self.report(h)}, (h, c)


def counting_networks(in_shape: Sequence[int], period: int, width: int) -> tuple[FastCounter, SlowCounter]:
    """Return networks A and B for a period ``T``.

    Raises:
        ConfigError: if a size is under 1.
    """
    for name, value in (("period", period), ("width", width)):
        if value < 1:
            raise ConfigError(f"{name}={value}: expected at least 1")
    return FastCounter(in_shape, width, period + 1), SlowCounter(width, period * period + 1)


def report_accuracy(outputs: Sequence[Mapping[str, Any]], block: DigitBlock) -> dict[str, float]:
    """Return the share of right reports of each network, from 0 to 1.

    Args:
        outputs: of each step of the block, by network.
        block: what was counted.
    """
    right: dict[str, list[Tensor]] = {}
    for made, (_, targets) in zip(outputs, block.steps(), strict=True):
        for name, target in targets.items():
            right.setdefault(name, []).append(made[name]["report"].argmax(1) == target)
    return {name: torch.stack(found).double().mean().item() for name, found in right.items()}
