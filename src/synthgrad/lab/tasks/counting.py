"""Counting digits with two networks that run at different rates (DNI §3.3): the data and the reference networks.

Network A sees a digit at every step. After every ``T`` steps it reports how many of the last ``T`` digits were odd, and
sends a message to network B. After every ``T²`` steps B reports how many of the last ``T²`` digits were threes. A has no
target about threes: it can learn to recognise them only from the gradient of its message.
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
    """``T²`` steps of ``B`` parallel streams.

    Attributes:
        period: ``T``.
        x: images, ``(T², B, C, Y, X)``.
        digits: class of each image, ``(T², B)`` int64.
        odd: number of odd digits in each ``T`` steps, ``(T, B)`` int64 from 0 to ``T``.
        threes: number of threes in the block, ``(B,)`` int64 from 0 to ``T²``.
    """

    period: int
    x: Tensor
    digits: Tensor
    odd: Tensor
    threes: Tensor

    def __len__(self) -> int:
        return self.x.shape[0]

    def steps(self) -> Iterator[tuple[dict[str, Tensor], dict[str, Tensor]]]:
        """Yield inputs and targets of each step, each by network: ``A`` and ``B``."""
        last = len(self) - 1
        for t, x in enumerate(self.x):
            targets: dict[str, Tensor] = {}
            if (t + 1) % self.period == 0:
                targets[FAST] = self.odd[t // self.period]
            if t == last:
                targets[SLOW] = self.threes
            yield {FAST: x}, targets


class DigitStream:
    """Endless streams of digits, drawn independently and with replacement, in blocks.

    Args:
        split: labelled images of digits; blocks are on the same device.
        batch_size: ``B``, number of parallel streams.
        period: ``T``.
        generator: random generator on the CPU; the draws depend on nothing else.

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
        """Return the generator's state, for `load_state_dict`."""
        return {"generator": self._generator.get_state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self._generator.set_state(state["generator"].cpu())


class FastCounter(nn.Module):
    """Network A: a hidden layer, an LSTM, and a linear report. Its message is the LSTM's output.

    Args:
        in_shape: shape of an image, ``(C, Y, X)``.
        width: ``H``, number of units in the hidden layer and in the LSTM.
        counts: number of counts that it can report, from 0 up.
    """

    def __init__(self, in_shape: Sequence[int], width: int, counts: int) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Flatten(), nn.Linear(prod(in_shape), width), nn.ReLU())
        self.cell = nn.LSTMCell(width, width)
        self.report = nn.Linear(width, counts)

    def forward(
        self, inputs: Mapping[str, Tensor], state: tuple[Tensor, Tensor] | None
    ) -> tuple[dict[str, Tensor], tuple[Tensor, Tensor]]:
        """Return the outputs ``message (B, H)`` and ``report (B, counts)``, and the state ``(h, c)``, each ``(B, H)``."""
        h, c = self.cell(self.encoder(inputs["input"]), state)
        return {"message": h, "report": self.report(h)}, (h, c)


class SlowCounter(nn.Module):
    """Network B: an LSTM that reads A's message, and a linear report.

    Args:
        width: ``H``, number of units in the message and in the LSTM.
        counts: number of counts that it can report, from 0 up.
    """

    def __init__(self, width: int, counts: int) -> None:
        super().__init__()
        self.cell = nn.LSTMCell(width, width)
        self.report = nn.Linear(width, counts)

    def forward(
        self, inputs: Mapping[str, Tensor], state: tuple[Tensor, Tensor] | None
    ) -> tuple[dict[str, Tensor], tuple[Tensor, Tensor]]:
        """Return the output ``report (B, counts)``, and the state ``(h, c)``, each ``(B, H)``."""
        h, c = self.cell(inputs[FAST], state)
        return {"report": self.report(h)}, (h, c)


def counting_networks(in_shape: Sequence[int], period: int, width: int) -> tuple[FastCounter, SlowCounter]:
    """Build networks A and B for a period ``T``.

    Raises:
        ConfigError: if a size is under 1.
    """
    for name, value in (("period", period), ("width", width)):
        if value < 1:
            raise ConfigError(f"{name}={value}: expected at least 1")
    return FastCounter(in_shape, width, period + 1), SlowCounter(width, period * period + 1)


def report_accuracy(outputs: Sequence[Mapping[str, Any]], block: DigitBlock) -> dict[str, float]:
    """Return the fraction of correct reports of each network, from 0 to 1.

    Args:
        outputs: outputs of both networks, by name, for each step of the block.
        block: the block that was counted.
    """
    correct: dict[str, list[Tensor]] = {}
    for step_outputs, (_, targets) in zip(outputs, block.steps(), strict=True):
        for name, target in targets.items():
            correct.setdefault(name, []).append(step_outputs[name]["report"].argmax(1) == target)
    return {name: torch.stack(hits).double().mean().item() for name, hits in correct.items()}
