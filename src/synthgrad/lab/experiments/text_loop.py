"""What runs on a text have in common: unroll after unroll of a stream, measured in bits per character."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from ...core import DivergedError
from ..tasks import Stream, Text, Unroll, bits, load_text
from .base_loop import BaseLoop, Progress
from .machine import synchronize
from .run_monitor import pack, unpack
from .sequence_config import CharRun
from .stacks_config import StackRun

__all__ = ["EVAL_UNROLL", "TextLoop", "eval_rows"]

Config = TypeVar("Config", CharRun, StackRun)

_CHUNK = 10  # unrolls between clock readings
_EVAL_ROWS = 64
EVAL_UNROLL = 100


def eval_rows(tokens: Tensor) -> int:
    """Return how many parts of a text are read side by side when it is measured."""
    return min(_EVAL_ROWS, len(tokens) - 1)


@lru_cache(maxsize=2)
def _text_for(name: str, data_dir: str | None, device: str) -> Text:
    """Return a text on the device; the same object to every run of this process."""
    return load_text(name, Path(data_dir) if data_dir else None).to(torch.device(device))


class TextLoop(BaseLoop, Generic[Config]):
    """A run on a text; a step is an unroll. Subclasses build network and trainer, learn from an unroll, and measure."""

    def __init__(self, config: Config, progress: Progress | None) -> None:
        super().__init__(config.device, progress)
        self.config: Config = config
        self.text: Text
        self.stream: Stream
        self._losses: list[Tensor] = []

    def prepare(self) -> None:
        """Load the text; subclasses build network and trainer then."""
        config = self.config
        self.text = _text_for(config.cell.data, config.data_dir, config.device)
        self.data_sha256 = self.text.sha256
        self.stream = Stream(self.text.train, config.schedule.batch_size)
        if config.cell.unroll > self.stream.length:
            self.stream.take(config.cell.unroll)  # says what fits

    def learn(self, unroll: Unroll) -> Tensor | None:
        """Train on an unroll; return the loss in nats, where it is known."""
        raise NotImplementedError

    def measure(self, tokens: Tensor) -> float:
        """Return bits per character of tokens, ``(N,)``."""
        raise NotImplementedError

    def measured(self, valid: float, point: dict[str, Any]) -> None:
        """Take note of the bits per character of the validation part, and add to the point what else is known."""

    @property
    def characters_in_loss(self) -> int:
        """How many characters a loss of `learn` is the sum over."""
        return 1

    def train(self) -> None:
        """Run all unrolls, with an evaluation now and then that no clock counts."""
        schedule = self.config.schedule
        while self._step < schedule.steps:
            now = self._step
            end = min(now + _CHUNK, schedule.steps, now - now % schedule.eval_every + schedule.eval_every)
            self._chunk(end - now)
            self._step = end
            if end % schedule.eval_every == 0 or end == schedule.steps:
                self._evaluate()
            self.keep()
            if self.progress is not None:
                self.progress(end)

    def _chunk(self, num: int) -> None:
        begun = time.perf_counter()
        for _ in range(num):
            loss = self.learn(self.stream.take(self.config.cell.unroll))
            if loss is not None:
                self._losses.append(loss)
        synchronize(self.config.device)
        seconds = time.perf_counter() - begun
        self._elapsed += seconds
        self._chunks.append(seconds / num)

    def _evaluate(self) -> None:
        self.trainer.finish()
        valid = self.measure(self.text.valid[: self.config.most_valid])
        train = float(torch.stack(self._losses).mean()) / self.characters_in_loss if self._losses else None
        self._losses = []
        point: dict[str, Any] = {
            "step": self._step,
            "elapsed_s": round(self._elapsed, 4),
            "chars_seen": self.chars_seen,
            "train_bits_per_char": None if train is None else bits(train),
            "val_bits_per_char": valid,
        }
        self.measured(valid, point)
        self.add_point(point)
        if not math.isfinite(valid):
            raise DivergedError("loss", self._step - 1)

    def state(self) -> dict[str, Any]:
        """Return all that the rest of the run depends on, between two unrolls; subclasses add theirs."""
        return {**super().state(), "stream": self.stream.state_dict(), "losses": pack(self._losses)}

    def take(self, state: Mapping[str, Any]) -> None:
        """Go on from a state."""
        super().take(state)
        self.stream.load_state_dict(state["stream"])
        self._losses = unpack(state["losses"])

    @property
    def chars_seen(self) -> int:
        return self._step * self.config.schedule.batch_size * self.config.cell.unroll

    def metrics(self) -> dict[str, Any]:
        """Return bits per character at the end."""
        return {
            "bits_per_char": self.measure(self.text.test),
            "val_bits_per_char": self.curve[-1]["val_bits_per_char"],
            "chars_seen": self.chars_seen,
            "num_parameters": sum(p.numel() for p in self.net.parameters()),
            "data_sha256": self.text.sha256,
        }
