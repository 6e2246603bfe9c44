"""The base class of tasks on a text, which read a stream of unrolls and are evaluated in bits per character."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...tasks import Text, TextStream, Unroll, bits, load_text
from ..payloads import Characters, LstmStack
from ..run import Run
from ..run_monitor import pack, unpack
from .task import Evaluation, Task

__all__ = ["EVAL_UNROLL", "TextTask", "num_eval_rows"]

_EVAL_ROWS = 64
#: Number of steps in an unroll during evaluation.
EVAL_UNROLL = 100


def num_eval_rows(tokens: Tensor) -> int:
    """Return the number of rows into which a text is cut for evaluation."""
    return min(_EVAL_ROWS, len(tokens) - 1)


@lru_cache(maxsize=2)
def _text_for(name: str, data_dir: str | None, device: str) -> Text:
    """Load a text onto a device; it is cached for all runs of this process."""
    return load_text(name, Path(data_dir) if data_dir else None).to(torch.device(device))


class TextTask(Task):
    """Trains on a text; a step is an unroll. Subclasses build the network, learn from an unroll, and evaluate.

    Attributes:
        text: the text, loaded by `set_up`.
        stream: stream of unrolls from the training part.
    """

    chunk = 10
    finite = ("val_bits_per_char",)

    text: Text
    stream: TextStream

    def __init__(self, run: Run) -> None:
        super().__init__(run)
        assert isinstance(run.payload, Characters | LstmStack)
        self.payload: Characters | LstmStack = run.payload
        self._losses: list[Tensor] = []  # training losses since the last evaluation

    def set_up(self) -> None:
        """Load the text; subclasses then build network and trainer."""
        run, unroll = self.run, self.payload.unroll
        self.text = _text_for(self.payload.data, run.data_dir, run.device)
        self.data_sha256 = self.text.sha256
        self.stream = TextStream(self.text.train, run.schedule.batch_size)
        self.stream.check(unroll)

    def learn(self, unroll: Unroll) -> Tensor | None:
        """Train on an unroll; return the loss in nats, or None if this process does not have it."""
        raise NotImplementedError

    def bits_per_char(self, tokens: Tensor) -> float:
        """Return the bits per character of a text, ``(N,)``."""
        raise NotImplementedError

    def after_validation(self, step: int, valid: float, point: Evaluation) -> None:
        """Called at each evaluation; may add figures to it.

        Args:
            step: number of steps done.
            valid: bits per character of the validation part.
            point: figures of the evaluation.
        """

    @property
    def num_chars_in_loss(self) -> int:
        """The number of characters over which the loss of `learn` is summed."""
        return 1

    def step(self) -> bool:
        """Train on the next unroll."""
        loss = self.learn(self.stream.next_unroll(self.payload.unroll))
        if loss is not None:
            self._losses.append(loss)
        return False

    def evaluate(self, step: int) -> Evaluation:
        """Evaluate the network on the validation part."""
        self.trainer.flush()
        valid = self.bits_per_char(self.text.valid[: self.payload.most_valid])
        losses, self._losses = self._losses, []
        point: Evaluation = {
            "chars_seen": self._chars_seen(step),
            "train_bits_per_char": bits(float(torch.stack(losses).mean()) / self.num_chars_in_loss)
            if losses
            else None,
            "val_bits_per_char": valid,
        }
        self.after_validation(step, valid, point)
        return point

    def metrics(self, curve: Sequence[Evaluation], elapsed_s: float) -> dict[str, Any]:
        """Return the final bits per character of the test and validation part."""
        return {
            "bits_per_char": self.bits_per_char(self.text.test),
            "val_bits_per_char": curve[-1]["val_bits_per_char"],
            "chars_seen": self._chars_seen(self.run.schedule.steps),
            "num_parameters": sum(p.numel() for p in self.net.parameters()),
            "data_sha256": self.text.sha256,
        }

    def _chars_seen(self, step: int) -> int:
        return step * self.run.schedule.batch_size * self.payload.unroll

    def state_dict(self) -> dict[str, Any]:
        return {"stream": self.stream.state_dict(), "losses": pack(self._losses)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.stream.load_state_dict(state["stream"])
        self._losses = unpack(state["losses"])
