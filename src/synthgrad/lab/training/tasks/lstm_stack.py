"""A stack of LSTMs on a text, with cuts between them: a chain, which every engine can train."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from ....engines import Carry
from ...tasks import Unroll, bits_per_char
from ..in_stages import local_engine
from ..methods import DataFacts, method_named
from ..payloads import LstmStack
from ..settings import RuleSettings
from ..trainers import Trainer, TrainerSpec, make_trainer
from .text import EVAL_UNROLL, TextTask, num_eval_rows

__all__ = ["LstmStackTask", "lstm_stack"]


class _OneHot(nn.Module):
    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classes = classes

    def forward(self, x: Tensor) -> Tensor:
        return F.one_hot(x.long(), self.classes).float()


class _Scores(nn.Linear):
    """A linear layer with outputs ``(B, classes, T)``, the order that PyTorch's cross-entropy expects."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input).transpose(1, 2)


def lstm_stack(classes: int, width: int, layers: int) -> nn.Sequential:
    """Build a stack of LSTMs that keep their states, named ``layer1``, ``layer2`` …; it maps tokens to scores.

    Args:
        classes: number of characters.
        width: number of units in each LSTM.
        layers: number of LSTMs.
    """
    model = nn.Sequential()
    for k in range(layers):
        lstm = Carry(nn.LSTM(width if k else classes, width, batch_first=True))
        model.add_module(f"layer{k + 1}", lstm if k else nn.Sequential(_OneHot(classes), lstm))
    model.add_module("scores", _Scores(width, classes))
    return model


class _EvaluatedStack:
    """Adapts a stack, which keeps its state inside, to the interface that `bits_per_char` expects."""

    def __init__(self, net: nn.Module) -> None:
        self._net = net
        self._modes = [(part, part.training) for part in net.modules()]
        self.training = net.training

    def train(self, mode: bool = True) -> None:
        """Set all submodules to evaluation mode, or back to the modes that they had."""
        for part, training in self._modes:
            part.training = training and mode
        self.training = mode

    def initial_state(self, batch_size: int) -> None:
        _reset_states(self._net)

    def __call__(self, x: Tensor, state: None, /) -> tuple[Tensor, None]:
        return self._net(x).transpose(1, 2), state


def _reset_states(net: nn.Module) -> None:
    for part in net.modules():
        if isinstance(part, Carry):
            part.reset()


class LstmStackTask(TextTask):
    """Trains a stack of LSTMs on a text."""

    trainer: Trainer

    def set_up(self) -> None:
        """Load the text, and build network and trainer."""
        super().set_up()
        run, payload = self.run, self.payload
        assert isinstance(payload, LstmStack)
        assert isinstance(run.rule, RuleSettings)
        model = lstm_stack(self.text.classes, payload.width, payload.layers).to(run.device)
        example = self.text.train[: run.schedule.batch_size * payload.unroll].view(-1, payload.unroll)
        cuts = [f"layer{k + 1}" for k in range(payload.layers - 1)]
        plan = TrainerSpec(
            method_named(run.method),
            run.rule,
            DataFacts(self.text.classes, len(self.text.train)),
            run.schedule.lr,
            run.seed,
            local_engine(payload.engine),
            **run.schedule.of_optimizer(),
        )
        self.net, self.trainer = make_trainer(plan, model, cuts, example)

    def learn(self, unroll: Unroll) -> Tensor | None:
        if unroll.first:
            _reset_states(self.net)
        return self.trainer.step(unroll.x, unroll.y).loss

    def bits_per_char(self, tokens: Tensor) -> float:
        return bits_per_char(_EvaluatedStack(self.net), tokens, num_eval_rows(tokens), EVAL_UNROLL)
