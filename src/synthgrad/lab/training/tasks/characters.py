"""A recurrent network as a character language model, trained unroll by unroll (DNI §3.2)."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from ....engines import Recurrent
from ...tasks import Unroll, bits_per_char, recurrent_network
from ..recurrent_methods import make_recurrent
from ..run import Run
from ..run_monitor import brief_quality
from ..settings import BoundarySettings
from ..trainers import precision_context
from .task import Evaluation
from .text import EVAL_UNROLL, TextTask, num_eval_rows

__all__ = ["CharactersTask"]


class CharactersTask(TextTask):
    """Trains the character language model.

    It is tested with the weights that have the lowest error on the validation part (early stopping).
    """

    trainer: Recurrent
    net: Any

    def __init__(self, run: Run) -> None:
        super().__init__(run)
        self._best = math.inf
        self._best_weights: dict[str, Tensor] = {}
        self._best_step = 0

    def set_up(self) -> None:
        """Load the text, and build network and trainer."""
        super().set_up()
        run, payload, classes = self.run, self.payload, self.text.classes
        assert isinstance(run.rule, BoundarySettings)
        net = recurrent_network(payload.arch, classes, classes, payload.width, payload.layers)
        self.net = net.to(run.device)
        self.trainer = make_recurrent(
            run.method,
            run.rule,
            self.net,
            per_sequence,
            batch_size=run.schedule.batch_size,
            width=payload.width,
            lr=run.schedule.lr,
        )
        self.trainer.boundary.monitor = self.monitor

    def learn(self, unroll: Unroll) -> Tensor | None:
        with precision_context(self.run.precision, self.run.device):
            return self.trainer.step(unroll.x, unroll.y, fresh=unroll.first, ended=unroll.last).loss

    @property
    def num_chars_in_loss(self) -> int:
        return self.payload.unroll

    def bits_per_char(self, tokens: Tensor) -> float:
        with precision_context(self.run.precision, self.run.device):
            return bits_per_char(self.net, tokens, num_eval_rows(tokens), EVAL_UNROLL)

    def after_validation(self, step: int, valid: float, point: Evaluation) -> None:
        if valid < self._best:
            self._best, self._best_step = valid, step
            self._best_weights = copy.deepcopy(self.net.state_dict())
        if found := self.monitor.collect():
            point["quality"] = brief_quality(found)

    def metrics(self, curve: Sequence[Evaluation], elapsed_s: float) -> dict[str, Any]:
        """Return bits per character with the best weights, and the training that it took to reach them."""
        if self._best_weights:
            self.net.load_state_dict(self._best_weights)
        best: Mapping[str, Any] = next((p for p in curve if p["step"] == self._best_step), {})
        return {
            **super().metrics(curve, elapsed_s),
            "val_bits_per_char": self._best,
            "best_step": self._best_step,
            "chars_to_best": best.get("chars_seen"),
            "time_to_best_s": best.get("elapsed_s"),
        }

    def state_dict(self) -> dict[str, Any]:
        return {
            **super().state_dict(),
            "boundary": self.trainer.boundary.state_dict(),
            "best": (self._best, self._best_step, self._best_weights),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.trainer.boundary.load_state_dict(state["boundary"])
        self._best, self._best_step, self._best_weights = state["best"]


def per_sequence(scores: Tensor, y: Tensor) -> Tensor:
    """Return the cross-entropy, summed over the steps of an unroll and averaged over sequences.

    Args:
        scores: ``(B, T, classes)``.
        y: targets, ``(B, T)`` int64.
    """
    return F.cross_entropy(scores.flatten(0, 1).float(), y.flatten(), reduction="sum") / len(y)
