"""Runs of the character language model: one text, read in unrolls, measured in bits per character."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from ...engines import Recurrent
from ..tasks import Unroll, bits_per_char, recurrent_network
from .base_loop import Progress
from .recurrent_methods import make_recurrent
from .sequence_config import CharRun
from .text_loop import EVAL_UNROLL, TextLoop, eval_rows
from .trainers import arithmetic

__all__ = ["CharLoop"]


class CharLoop(TextLoop[CharRun]):
    """A run of the character language model.

    The weights of the lowest error on the validation part are those that are tested (early stopping).
    """

    trainer: Recurrent
    net: Any

    def __init__(self, config: CharRun, progress: Progress | None) -> None:
        super().__init__(config, progress)
        self._best = math.inf
        self._best_weights: dict[str, Tensor] = {}
        self._best_step = 0

    def prepare(self) -> None:
        """Load the text, build network and trainer."""
        super().prepare()
        config, cell, classes = self.config, self.config.cell, self.text.classes
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

    def learn(self, unroll: Unroll) -> Tensor | None:
        with arithmetic(self.config.precision, self.config.device):
            return self.trainer.step(unroll.x, unroll.y, fresh=unroll.first, ended=unroll.last).loss

    @property
    def characters_in_loss(self) -> int:
        return self.config.cell.unroll

    def measure(self, tokens: Tensor) -> float:
        with arithmetic(self.config.precision, self.config.device):
            return bits_per_char(self.net, tokens, eval_rows(tokens), EVAL_UNROLL)

    def measured(self, valid: float, point: dict[str, Any]) -> None:
        if valid < self._best:
            self._best, self._best_step = valid, self._step
            self._best_weights = copy.deepcopy(self.net.state_dict())
        if found := self.monitor.collect():
            names = ("cosine", "relative_error", "sign_agreement")
            point["quality"] = {k: {n: getattr(q, n) for n in names} for k, q in found.items()}

    def metrics(self) -> dict[str, Any]:
        """Return bits per character of the best weights, and what it took to come there."""
        if self._best_weights:
            self.net.load_state_dict(self._best_weights)
        best = next((p for p in self.curve if p["step"] == self._best_step), {})
        return {
            **super().metrics(),
            "val_bits_per_char": self._best,
            "best_step": self._best_step,
            "chars_to_best": best.get("chars_seen"),
            "time_to_best_s": best.get("elapsed_s"),
        }

    def state(self) -> dict[str, Any]:
        """Return all that the rest of the run depends on, between two unrolls."""
        return {
            **super().state(),
            "boundary": self.trainer.boundary.state_dict(),
            "best": (self._best, self._best_step, self._best_weights),
        }

    def take(self, state: Mapping[str, Any]) -> None:
        """Go on from a state."""
        super().take(state)
        self.trainer.boundary.load_state_dict(state["boundary"])
        self._best, self._best_step, self._best_weights = state["best"]


def per_sequence(scores: Tensor, y: Tensor) -> Tensor:
    """Return cross entropy summed over the steps of an unroll, mean over sequences.

    Args:
        scores: ``(B, T, classes)``.
        y: ``(B, T)``.
    """
    return F.cross_entropy(scores.flatten(0, 1).float(), y.flatten(), reduction="sum") / len(y)
