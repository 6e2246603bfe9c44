"""Runs of a stack of recurrent layers that is cut between them: a chain, which every engine trains."""

from __future__ import annotations

import math
import time
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..core import DivergedError
from ..engines import Carry
from ..tasks import Stream, Text, bits, bits_per_char
from .base_loop import BaseLoop, Progress
from .char_loop import text_for
from .in_stages import engine_here
from .machine import synchronize
from .methods import Facts, method_named
from .stacks_config import StackRun
from .trainers import Plan, Trainer, make_trainer

__all__ = ["StackLoop", "stack"]

_CHUNK = 10  # unrolls between clock readings
_EVAL_ROWS, _EVAL_UNROLL = 64, 100


class _OneHot(nn.Module):
    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classes = classes

    def forward(self, x: Tensor) -> Tensor:
        return F.one_hot(x.long(), self.classes).float()


class _Scores(nn.Linear):
    """A linear layer whose classes come second, ``(B, classes, T)``, as PyTorch's cross entropy has them."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input).transpose(1, 2)


def stack(classes: int, width: int, layers: int) -> nn.Sequential:
    """Return LSTMs one above the other, named ``layer1``, ``layer2`` …, which keep their states; tokens in, scores out.

    Args:
        classes: characters.
        width: units of each.
        layers: LSTMs.
    """
    model = nn.Sequential()
    for k in range(layers):
        lstm = Carry(nn.LSTM(width if k else classes, width, batch_first=True))
        model.add_module(f"layer{k + 1}", lstm if k else nn.Sequential(_OneHot(classes), lstm))
    model.add_module("scores", _Scores(width, classes))
    return model


class _Reader:
    """A stack in the form that `bits_per_char` asks for: the state that it passes on lies inside."""

    def __init__(self, net: nn.Module) -> None:
        self._net = net
        self.training = net.training

    def train(self, mode: bool = True) -> None:
        self._net.train(mode)
        self.training = mode

    def initial_state(self, batch_size: int) -> None:
        _reset(self._net)

    def __call__(self, x: Tensor, state: None, /) -> tuple[Tensor, None]:
        return self._net(x).transpose(1, 2), state


def _reset(net: nn.Module) -> None:
    for part in net.modules():
        if isinstance(part, Carry):
            part.reset()


class StackLoop(BaseLoop):
    """A run of a stack on a text; a step is an unroll."""

    def __init__(self, config: StackRun, progress: Progress | None) -> None:
        super().__init__(config.device, progress)
        self.config = config
        self.text: Text
        self.stream: Stream
        self.net: nn.Module
        self.trainer: Trainer
        self._losses: list[Tensor] = []

    def prepare(self) -> None:
        """Load the text, build network and trainer."""
        config, cell = self.config, self.config.cell
        self.text = text_for(cell.data, config.data_dir, config.device)
        self.stream = Stream(self.text.train, config.schedule.batch_size)
        model = stack(self.text.classes, cell.width, cell.layers).to(config.device)
        example = self.text.train[: config.schedule.batch_size * cell.unroll].view(-1, cell.unroll)
        cuts = [f"layer{k + 1}" for k in range(cell.layers - 1)]
        plan = Plan(
            method_named(config.method),
            config.rule,
            Facts(self.text.classes, len(self.text.train)),
            config.schedule.lr,
            config.seed,
            engine_here(cell.engine),
        )
        self.net, self.trainer = make_trainer(plan, model, cuts, example)

    def train(self) -> None:
        """Run all unrolls, with an evaluation now and then that no clock counts."""
        schedule = self.config.schedule
        self.net.train()
        while self._step < schedule.steps:
            num = min(
                _CHUNK, schedule.steps - self._step, schedule.eval_every - self._step % schedule.eval_every
            )
            self._chunk(num)
            self._step += num
            if self._step % schedule.eval_every == 0 or self._step == schedule.steps:
                self._evaluate()
            if self.progress is not None:
                self.progress(self._step)

    def _chunk(self, num: int) -> None:
        begun = time.perf_counter()
        for _ in range(num):
            unroll = self.stream.take(self.config.cell.unroll)
            if unroll.first:
                _reset(self.net)
            done = self.trainer.step(unroll.x, unroll.y)
            if done.loss is not None:
                self._losses.append(done.loss)
        synchronize(self.config.device)
        seconds = time.perf_counter() - begun
        self._elapsed += seconds
        self._chunks.append(seconds / num)

    def _evaluate(self) -> None:
        self.trainer.finish()
        valid = self._measure(self.text.valid[: self.config.most_valid])
        train = float(torch.stack(self._losses).mean()) if self._losses else None
        self._losses = []
        self.add_point(
            {
                "step": self._step,
                "elapsed_s": round(self._elapsed, 4),
                "chars_seen": self._chars,
                "train_bits_per_char": None if train is None else bits(train),
                "val_bits_per_char": valid,
            }
        )
        if not math.isfinite(valid):
            raise DivergedError("loss", self._step - 1)

    @property
    def _chars(self) -> int:
        return self._step * self.config.schedule.batch_size * self.config.cell.unroll

    def _measure(self, tokens: Tensor) -> float:
        return bits_per_char(_Reader(self.net), tokens, min(_EVAL_ROWS, len(tokens) - 1), _EVAL_UNROLL)

    def metrics(self) -> dict[str, Any]:
        """Return bits per character at the end."""
        return {
            "bits_per_char": self._measure(self.text.test),
            "val_bits_per_char": self.curve[-1]["val_bits_per_char"],
            "chars_seen": self._chars,
            "num_parameters": sum(p.numel() for p in self.net.parameters()),
            "data_sha256": self.text.sha256,
        }
