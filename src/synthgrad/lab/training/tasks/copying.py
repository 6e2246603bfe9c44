"""Copy and Repeat Copy in parallel rows of episodes, with a curriculum (DNI §3.2)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ....core import DivergedError
from ....engines import Recurrent
from ...tasks import CopyEpisodes, Curriculum, EpisodeStream, EpisodeUnroll, recurrent_network
from ..payloads import Copying
from ..recurrent_methods import make_recurrent
from ..run import Run
from ..run_monitor import brief_quality
from ..settings import BoundarySettings
from ..trainers import precision_context
from .task import Evaluation, Task

__all__ = ["CopyingTask"]

_LN2 = math.log(2)
#: Number of classes of the steps left in an episode, a rule's context; the last class is for all larger numbers.
_CONTEXTS = 64


class CopyingTask(Task):
    """Trains on Copy or Repeat Copy; a step ends when as many episodes have ended as there are rows.

    The context of a rule is the number of steps left in a row's episode after the unroll.
    """

    trainer: Recurrent

    def __init__(self, run: Run) -> None:
        super().__init__(run)
        assert isinstance(run.payload, Copying)
        self.payload = run.payload
        self.curriculum = Curriculum(self.payload.data == "repeat_copy", self.payload.threshold)
        self.episodes: CopyEpisodes
        self.stream: EpisodeStream
        self._num_steps = 0
        self._num_sequences = 0  # number of episodes that have ended
        self._bits: list[
            float
        ] = []  # bits per character of the episodes that ended since the last evaluation
        self._measured: list[float] = []  # the same, of episodes that the curriculum has still to count
        self._open: Tensor  # (B,): loss so far of each row's present episode, in nats
        self._losses: list[Tensor] = []  # loss of each row in the present unroll

    def set_up(self) -> None:
        """Build the episodes, the network and the trainer."""
        run, payload = self.run, self.payload
        assert isinstance(run.rule, BoundarySettings)
        repeat = payload.data == "repeat_copy"
        self.episodes = CopyEpisodes(payload.symbols, repeat=repeat, seed=run.seed, device=run.device)
        rows = run.schedule.batch_size
        self.stream = EpisodeStream(
            self.episodes, rows, lambda: (self.curriculum.length, self.curriculum.count), payload.spread
        )
        self._open = torch.zeros(rows, device=run.device)
        net = recurrent_network(
            payload.arch, self.episodes.inputs, self.episodes.classes, payload.width, payload.layers
        )
        self.net = net.to(run.device)
        self.trainer = make_recurrent(
            run.method,
            run.rule,
            self.net,
            self._loss,
            batch_size=rows,
            width=payload.width,
            lr=run.schedule.lr,
            contexts=_CONTEXTS,
        )
        self.trainer.boundary.monitor = self.monitor

    def begin(self, step: int) -> None:
        self._num_steps = step

    def step(self) -> bool:
        """Train until another batch of episodes has ended; return whether a length was solved."""
        run, rows = self.run, self.run.schedule.batch_size
        solved = False
        while self._num_sequences < (self._num_steps + 1) * rows:
            unroll = self.stream.next_unroll(self.payload.unroll)
            steps_left = unroll.steps_left.clamp_max(_CONTEXTS - 1)
            y = unroll.y if unroll.has_targets else None
            with precision_context(run.precision, run.device):
                self.trainer.step(unroll.x, y, fresh=unroll.fresh, ended=unroll.ended, context=steps_left)
            self._open += self._losses.pop()
            if len(unroll.ended_rows):
                self._num_sequences += len(unroll.ended_rows)
                solved |= self._measure_ended(unroll)
        self._num_steps += 1
        return solved

    def _measure_ended(self, unroll: EpisodeUnroll) -> bool:
        """Measure the episodes that have ended; return whether they solve a length."""
        lengths = unroll.task_lengths[unroll.ended_rows]
        ended = unroll.ended_rows.to(self.run.device)
        bits = (self._open[ended].cpu() / _LN2 / (lengths - 2)).tolist()
        self._open[ended] = 0.0
        self._bits += bits
        if not all(map(math.isfinite, bits)):
            raise DivergedError("loss", self._num_steps)
        # Episodes that began before the last length was solved are too short to count for the next length.
        counts = (lengths == self.curriculum.task_length).tolist()
        self._measured += [b for b, counted in zip(bits, counts, strict=True) if counted]
        rows = self.run.schedule.batch_size
        if len(self._measured) < rows:
            return False
        solved = self.curriculum.update(sum(self._measured[:rows]) / rows)
        self._measured = [] if solved else self._measured[rows:]
        return solved

    def _loss(self, scores: Tensor, y: Tensor | None) -> Tensor:
        """Return the cross-entropy, summed over the steps with a target and averaged over sequences.

        Args:
            scores: ``(B, T, classes)``.
            y: targets, ``(B, T)``; None if there are none. The loss is then not attached to the graph, because with
                gradients of zero an optimizer would still follow its momentum.
        """
        if y is None:
            self._losses.append(torch.zeros_like(self._open))
            return scores.new_zeros((), dtype=torch.float32)
        each = F.cross_entropy(scores.flatten(0, 1).float(), y.flatten(), reduction="none").view_as(y).sum(1)
        # Detached, because these sums for the curriculum would keep the graph of every unroll alive.
        self._losses.append(each.detach())
        return each.mean()

    def evaluate(self, step: int) -> Evaluation:
        """Return the longest solved length, and the bits per character of the episodes since the last evaluation."""
        point: Evaluation = {
            "sequence_length": self.curriculum.longest_solved,
            "sequences_seen": self._num_sequences,
            "train_bits_per_char": sum(self._bits) / len(self._bits),
        }
        self._bits = []
        if found := self.monitor.collect():
            point["quality"] = brief_quality(found)
        return point

    def flush(self) -> None:
        self.trainer.flush()

    def metrics(self, curve: Sequence[Evaluation], elapsed_s: float) -> dict[str, Any]:
        """Return the longest solved length, and the training that it took to reach it."""
        solved = self.curriculum.longest_solved
        first = next((p for p in curve if p["sequence_length"] == solved), None)
        return {
            "sequence_length": solved,
            "sequences_seen": self._num_sequences,
            "sequences_to_longest": first["sequences_seen"] if solved and first else None,
            "time_to_longest_s": first["elapsed_s"] if solved and first else None,
            "num_parameters": sum(p.numel() for p in self.net.parameters()),
        }

    def state_dict(self) -> dict[str, Any]:
        return {
            "boundary": self.trainer.boundary.state_dict(),
            "curriculum": self.curriculum.state_dict(),
            "generator": self.episodes.generator.get_state(),
            "stream": self.stream.state_dict(),
            "sequences": self._num_sequences,
            "bits": self._bits,
            "measured": self._measured,
            "open": self._open,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.trainer.boundary.load_state_dict(state["boundary"])
        self.curriculum.load_state_dict(state["curriculum"])
        self.episodes.generator.set_state(state["generator"].cpu())
        self.stream.load_state_dict(state["stream"])
        self._bits = state["bits"]
        self._num_sequences, self._measured = state["sequences"], state["measured"]
        self._open = state["open"].to(self.run.device, copy=True)
