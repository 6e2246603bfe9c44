"""Runs of Copy and Repeat Copy: episodes over a curriculum, one after the other."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..core import DivergedError, Monitor
from ..engines import Recurrent
from ..tasks import CopyTask, Curriculum, Episode, recurrent_network
from .base_loop import BaseLoop, Progress
from .machine import synchronize
from .recurrent_methods import make_recurrent
from .sequence_config import CopyRun
from .trainers import arithmetic

__all__ = ["CopyLoop", "episode_step"]

_LN2 = math.log(2)
#: Steps left that a rule can tell apart; longer episodes begin with one class for all that is farther.
_CONTEXTS = 64


class CopyLoop(BaseLoop):
    """A run of Copy or Repeat Copy; a step is a batch of episodes, unrolled from its start to its end."""

    def __init__(self, config: CopyRun, progress: Progress | None) -> None:
        super().__init__(config.device, progress)
        self.config = config
        self.task: CopyTask
        self.net: nn.Module
        self.trainer: Recurrent
        self.curriculum = Curriculum(config.cell.data == "repeat_copy", config.threshold)
        self.monitor = Monitor(every=20)
        self._bits: list[float] = []

    def prepare(self) -> None:
        """Build task, network and trainer."""
        config, cell = self.config, self.config.cell
        repeat = cell.data == "repeat_copy"
        self.task = CopyTask(config.symbols, repeat=repeat, seed=config.seed, device=config.device)
        net = recurrent_network(cell.arch, self.task.inputs, self.task.classes, cell.width, cell.layers)  # pyright: ignore[reportArgumentType]
        self.net = net.to(config.device)
        self.trainer = make_recurrent(
            config.method,
            config.rule,
            self.net,
            asked_only,
            batch_size=config.schedule.batch_size,
            width=cell.width,
            lr=config.schedule.lr,
            contexts=_CONTEXTS,
        )
        self.trainer.boundary.monitor = self.monitor

    def train(self) -> None:
        """Run all batches of episodes."""
        config, curriculum = self.config, self.curriculum
        schedule = config.schedule
        while self._step < schedule.steps:
            begun = time.perf_counter()
            episode = self.task.draw(schedule.batch_size, curriculum.length, curriculum.count)
            with arithmetic(config.precision, config.device):
                bits = episode_step(self.trainer, episode, config.cell.unroll)
            synchronize(config.device)
            self._elapsed += time.perf_counter() - begun
            self._chunks.append(time.perf_counter() - begun)
            self._step += 1
            self._bits.append(bits)
            if not math.isfinite(bits):
                raise DivergedError("loss", self._step - 1)
            solved = curriculum.update(bits)
            if solved or self._step % schedule.eval_every == 0 or self._step == schedule.steps:
                self._point()
                self.keep()
            if self.progress is not None and self._step % 10 == 0:
                self.progress(self._step)
        self.trainer.finish()

    def _point(self) -> None:
        point: dict[str, Any] = {
            "step": self._step,
            "elapsed_s": round(self._elapsed, 4),
            "sequence_length": self.curriculum.solved,
            "sequences_seen": self._step * self.config.schedule.batch_size,
            "train_bits_per_char": sum(self._bits) / len(self._bits),
        }
        self._bits = []
        if found := self.monitor.collect():
            point["quality"] = {name: _plain(q) for name, q in found.items()}
        self.add_point(point)

    def metrics(self) -> dict[str, Any]:
        """Return the longest sequence, and what it took to come there."""
        solved = self.curriculum.solved
        first = next((p for p in self.curve if p["sequence_length"] == solved), None)
        return {
            "sequence_length": solved,
            "sequences_seen": self._step * self.config.schedule.batch_size,
            "sequences_to_longest": first["sequences_seen"] if solved and first else None,
            "time_to_longest_s": first["elapsed_s"] if solved and first else None,
            "num_parameters": sum(p.numel() for p in self.net.parameters()),
        }

    def state(self) -> dict[str, Any]:
        """Return all that the rest of the run depends on."""
        return {
            **super().state(),
            "net": self.net.state_dict(),
            "boundary": self.trainer.boundary.state_dict(),
            "trainer": self.trainer.state_dict(),
            "curriculum": self.curriculum.state_dict(),
            "generator": self.task.generator.get_state(),
            "seen": self.monitor.seen,
            "bits": self._bits,
        }

    def take(self, state: Mapping[str, Any]) -> None:
        """Go on from a state."""
        super().take(state)
        self.net.load_state_dict(state["net"])
        self.trainer.boundary.load_state_dict(state["boundary"])
        self.trainer.load_state_dict(state["trainer"])
        self.curriculum.load_state_dict(state["curriculum"])
        self.task.generator.set_state(state["generator"].cpu())
        self.monitor.seen, self._bits = state["seen"], state["bits"]


def _plain(quality: Any) -> dict[str, float]:
    return {name: getattr(quality, name) for name in ("cosine", "relative_error", "sign_agreement")}


def asked_only(scores: Tensor, y: Tensor | None) -> Tensor:
    """Return cross entropy summed over the steps that ask for something, mean over sequences.

    Args:
        scores: ``(B, T, classes)``.
        y: ``(B, T)``; None where nothing is asked for, which gives a loss that nothing flows back from.
    """
    if y is None:
        return scores.new_zeros((), dtype=torch.float32)
    return F.cross_entropy(scores.flatten(0, 1).float(), y.flatten(), reduction="sum") / len(y)


def episode_step(trainer: Recurrent, episode: Episode, unroll: int) -> float:
    """Learn from a batch of whole episodes, in unrolls; the last one is as long as what is left.

    Rules that have a context are told how many steps are left after an unroll, the same for all sequences.

    Returns:
        Bits per asked character, each measured before it was learned from.
    """
    total = torch.zeros((), device=episode.x.device)
    length = episode.x.shape[1]
    left = torch.arange(length, -1, -1, device=episode.x.device).clamp_max(_CONTEXTS - 1)
    for start in range(0, length, unroll):
        end = min(start + unroll, length)
        y = episode.y[:, start:end] if end > episode.first else None
        done = trainer.step(
            episode.x[:, start:end],
            y,
            fresh=start == 0,
            ended=end == length,
            context=left[end].expand(len(episode.x)),
        )
        if done.loss is not None:
            total += done.loss
    return total.item() / _LN2 / (length - episode.first)
