"""Runs of the character language model: one text, read in unrolls, measured in bits per character."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..core import DivergedError, Monitor
from ..engines import Recurrent
from ..tasks import Stream, Text, bits, bits_per_char, load_text, recurrent_network
from .base_loop import BaseLoop, Progress
from .machine import synchronize
from .recurrent_methods import make_recurrent
from .sequence_config import CharRun
from .trainers import arithmetic

__all__ = ["CharLoop", "text_for"]

_CHUNK = 10  # unrolls between clock readings
_EVAL_ROWS = 64  # side by side, when measured
_EVAL_UNROLL = 100


@lru_cache(maxsize=2)
def text_for(name: str, data_dir: str | None, device: str) -> Text:
    """Return a text on the device; the same object to every run of this process."""
    return load_text(name, Path(data_dir) if data_dir else None).to(torch.device(device))


class CharLoop(BaseLoop):
    """A run of the character language model; a step is an unroll.

    The weights of the lowest error on the validation part are those that are tested (early stopping).
    """

    def __init__(self, config: CharRun, progress: Progress | None) -> None:
        super().__init__(config.device, progress)
        self.config = config
        self.monitor = Monitor(every=20)
        self.text: Text
        self.stream: Stream
        self.net: Any
        self.trainer: Recurrent
        self._losses: list[Tensor] = []
        self._best = math.inf
        self._best_weights: dict[str, Tensor] = {}
        self._best_step = 0

    def prepare(self) -> None:
        """Load the text, build network and trainer."""
        config, cell = self.config, self.config.cell
        self.text = text_for(cell.data, config.data_dir, config.device)
        self.stream = Stream(self.text.train, config.schedule.batch_size)
        if cell.unroll > self.stream.length:
            self.stream.take(cell.unroll)  # says what fits
        classes = self.text.classes
        net = recurrent_network(cell.arch, classes, classes, cell.width, cell.layers)  # pyright: ignore[reportArgumentType]
        self.net = net.to(config.device)
        self.trainer = make_recurrent(
            config.method,
            config.rule,
            self.net,
            per_sequence,
            batch_size=config.schedule.batch_size,
            width=cell.width,
            lr=config.schedule.lr,
        )
        self.trainer.boundary.monitor = self.monitor

    def train(self) -> None:
        """Run all unrolls."""
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
            unroll = self.stream.take(self.config.cell.unroll)
            with arithmetic(self.config.precision, self.config.device):
                done = self.trainer.step(unroll.x, unroll.y, fresh=unroll.first, ended=unroll.last)
            if done.loss is not None:
                self._losses.append(done.loss)
        synchronize(self.config.device)
        seconds = time.perf_counter() - begun
        self._elapsed += seconds
        self._chunks.append(seconds / num)

    def _evaluate(self) -> None:
        self.trainer.finish()
        valid = self._measure(self.text.valid[: self.config.most_valid])
        if valid < self._best:
            self._best, self._best_step = valid, self._step
            self._best_weights = copy.deepcopy(self.net.state_dict())
        train = float(torch.stack(self._losses).mean()) / self.config.cell.unroll if self._losses else None
        self._losses = []
        point: dict[str, Any] = {
            "step": self._step,
            "elapsed_s": round(self._elapsed, 4),
            "chars_seen": self._chars,
            "train_bits_per_char": None if train is None else bits(train),
            "val_bits_per_char": valid,
        }
        if found := self.monitor.collect():
            names = ("cosine", "relative_error", "sign_agreement")
            point["quality"] = {k: {n: getattr(q, n) for n in names} for k, q in found.items()}
        self.add_point(point)
        if not math.isfinite(valid):
            raise DivergedError("loss", self._step - 1)

    @property
    def _chars(self) -> int:
        return self._step * self.config.schedule.batch_size * self.config.cell.unroll

    def _measure(self, tokens: Tensor) -> float:
        rows = min(_EVAL_ROWS, len(tokens) - 1)
        with arithmetic(self.config.precision, self.config.device):
            return bits_per_char(self.net, tokens, rows, _EVAL_UNROLL)

    def metrics(self) -> dict[str, Any]:
        """Return bits per character of the best weights, and what it took to come there."""
        if self._best_weights:
            self.net.load_state_dict(self._best_weights)
        best = next((p for p in self.curve if p["step"] == self._best_step), {})
        return {
            "bits_per_char": self._measure(self.text.test),
            "val_bits_per_char": self._best,
            "best_step": self._best_step,
            "chars_seen": self._chars,
            "chars_to_best": best.get("chars_seen"),
            "time_to_best_s": best.get("elapsed_s"),
            "num_parameters": sum(p.numel() for p in self.net.parameters()),
            "data_sha256": self.text.sha256,
        }

    def state(self) -> dict[str, Any]:
        """Return all that the rest of the run depends on, right after an evaluation."""
        return {
            **super().state(),
            "net": self.net.state_dict(),
            "boundary": self.trainer.boundary.state_dict(),
            "trainer": self.trainer.state_dict(),
            "stream": self.stream.state_dict(),
            "best": (self._best, self._best_step, self._best_weights),
            "seen": self.monitor.seen,
        }

    def take(self, state: Mapping[str, Any]) -> None:
        """Go on from a state."""
        super().take(state)
        self.net.load_state_dict(state["net"])
        self.trainer.boundary.load_state_dict(state["boundary"])
        self.trainer.load_state_dict(state["trainer"])
        self.stream.load_state_dict(state["stream"])
        self._best, self._best_step, self._best_weights = state["best"]
        self.monitor.seen = state["seen"]


def per_sequence(scores: Tensor, y: Tensor) -> Tensor:
    """Return cross entropy summed over the steps of an unroll, mean over sequences.

    Args:
        scores: ``(B, T, classes)``.
        y: ``(B, T)``.
    """
    return F.cross_entropy(scores.flatten(0, 1).float(), y.flatten(), reduction="sum") / len(y)
