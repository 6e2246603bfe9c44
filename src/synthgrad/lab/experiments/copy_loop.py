"""Runs of Copy and Repeat Copy: rows of episodes side by side, over a curriculum."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...core import DivergedError
from ...engines import Recurrent
from ..tasks import CopyTask, Curriculum, EpisodeStream, Part, recurrent_network
from .base_loop import BaseLoop, Progress
from .machine import synchronize
from .recurrent_methods import make_recurrent
from .sequence_config import CopyRun
from .trainers import arithmetic

__all__ = ["CopyLoop"]

_LN2 = math.log(2)
#: Steps left that a rule can tell apart; longer episodes begin with one class for all that is farther.
_CONTEXTS = 64


class CopyLoop(BaseLoop):
    """A run of Copy or Repeat Copy; a step is as many episodes as there are rows.

    Rules that have a context are told how many steps are left of a row's episode behind an unroll.
    """

    def __init__(self, config: CopyRun, progress: Progress | None) -> None:
        super().__init__(config.device, progress)
        self.config = config
        self.task: CopyTask
        self.net: nn.Module
        self.trainer: Recurrent
        self.curriculum = Curriculum(config.cell.data == "repeat_copy", config.threshold)
        self.stream: EpisodeStream
        self._sequences = 0  # that are over
        self._bits: list[float] = []  # a character, of all that are over since the last point
        self._measured: list[float] = []  # of those of the curriculum's length that it does not know of
        self._open: Tensor  # (B,): what the episodes under way have cost so far, in nats
        self._losses: list[Tensor] = []  # of the unroll at hand, by row

    def prepare(self) -> None:
        """Build task, network and trainer."""
        config, cell = self.config, self.config.cell
        repeat = cell.data == "repeat_copy"
        self.task = CopyTask(config.symbols, repeat=repeat, seed=config.seed, device=config.device)
        rows = config.schedule.batch_size
        self.stream = EpisodeStream(
            self.task,
            rows,
            lambda: (self.curriculum.length, self.curriculum.count),
            config.spread,
        )
        self._open = torch.zeros(rows, device=config.device)
        net = recurrent_network(cell.arch, self.task.inputs, self.task.classes, cell.width, cell.layers)  # pyright: ignore[reportArgumentType]
        self.net = net.to(config.device)
        self.trainer = make_recurrent(
            config.method,
            config.rule,
            self.net,
            self._loss,
            batch_size=rows,
            width=cell.width,
            lr=config.schedule.lr,
            contexts=_CONTEXTS,
        )
        self.trainer.boundary.monitor = self.monitor

    def train(self) -> None:
        """Run until so many batches of episodes are over."""
        config, schedule = self.config, self.config.schedule
        while self._step < schedule.steps:
            begun = time.perf_counter()
            solved = self._batch()
            synchronize(config.device)
            self._elapsed += time.perf_counter() - begun
            self._chunks.append(time.perf_counter() - begun)
            self._step += 1
            if solved or self._step % schedule.eval_every == 0 or self._step == schedule.steps:
                self._point()
            self.keep()
            if self.progress is not None and self._step % 10 == 0:
                self.progress(self._step)
        self.trainer.finish()

    def _batch(self) -> bool:
        """Train until another batch of episodes is over; return whether a length was solved on the way."""
        config, rows = self.config, self.config.schedule.batch_size
        solved = False
        while self._sequences < (self._step + 1) * rows:
            part = self.stream.take(config.cell.unroll)
            left = part.left.clamp_max(_CONTEXTS - 1)
            y = part.y if part.asks else None
            with arithmetic(config.precision, config.device):
                self.trainer.step(part.x, y, fresh=part.fresh, ended=part.ended, context=left)
            self._open += self._losses.pop()
            if len(part.finished):
                self._sequences += len(part.finished)
                solved |= self._over(part)
        return solved

    def _over(self, part: Part) -> bool:
        """Measure the episodes that are over; return whether they solve a length."""
        lengths = part.task_lengths[part.finished]
        ended = part.finished.to(self.device)
        bits = (self._open[ended].cpu() / _LN2 / (lengths - 2)).tolist()
        self._open[ended] = 0.0
        self._bits += bits
        if not all(map(math.isfinite, bits)):
            raise DivergedError("loss", self._step)
        # What was begun before the last length was solved does not count for the next.
        of_now = lengths == self.curriculum.task_length
        self._measured += [b for b, counts in zip(bits, of_now.tolist(), strict=True) if counts]
        rows = self.config.schedule.batch_size
        if len(self._measured) < rows:
            return False
        solved = self.curriculum.update(sum(self._measured[:rows]) / rows)
        self._measured = [] if solved else self._measured[rows:]
        return solved

    def _loss(self, scores: Tensor, y: Tensor | None) -> Tensor:
        """Return cross entropy summed over the steps that ask for something, mean over sequences.

        Args:
            scores: ``(B, T, classes)``.
            y: ``(B, T)``; None where nothing is asked for, which gives a loss that nothing flows back from: an optimizer
                would follow its momentum on gradients of zero.
        """
        if y is None:
            self._losses.append(torch.zeros_like(self._open))
            return scores.new_zeros((), dtype=torch.float32)
        each = F.cross_entropy(scores.flatten(0, 1).float(), y.flatten(), reduction="none").view_as(y).sum(1)
        self._losses.append(each.detach())
        return each.mean()

    def _point(self) -> None:
        point: dict[str, Any] = {
            "step": self._step,
            "elapsed_s": round(self._elapsed, 4),
            "sequence_length": self.curriculum.solved,
            "sequences_seen": self._sequences,
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
            "sequences_seen": self._sequences,
            "sequences_to_longest": first["sequences_seen"] if solved and first else None,
            "time_to_longest_s": first["elapsed_s"] if solved and first else None,
            "num_parameters": sum(p.numel() for p in self.net.parameters()),
        }

    def state(self) -> dict[str, Any]:
        """Return all that the rest of the run depends on, between two batches of episodes."""
        return {
            **super().state(),
            "boundary": self.trainer.boundary.state_dict(),
            "curriculum": self.curriculum.state_dict(),
            "generator": self.task.generator.get_state(),
            "stream": self.stream.state_dict(),
            "sequences": self._sequences,
            "bits": self._bits,
            "measured": self._measured,
            "open": self._open,
        }

    def take(self, state: Mapping[str, Any]) -> None:
        """Go on from a state."""
        super().take(state)
        self.trainer.boundary.load_state_dict(state["boundary"])
        self.curriculum.load_state_dict(state["curriculum"])
        self.task.generator.set_state(state["generator"].cpu())
        self.stream.load_state_dict(state["stream"])
        self._bits = state["bits"]
        self._sequences, self._measured = state["sequences"], state["measured"]
        self._open = state["open"].to(self.device, copy=True)


def _plain(quality: Any) -> dict[str, float]:
    return {name: getattr(quality, name) for name in ("cosine", "relative_error", "sign_agreement")}
