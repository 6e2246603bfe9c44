"""A GPT as a language model, trained on windows of a text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ....core import Decoupled, Quality
from ....engines import credit_quality
from ....rules import LateCorrection
from ...names import own_text
from ...tasks import TokenLoss, TokenText, TokenWindows, bits, load_tokens, token_loss, token_loss_of
from ...tasks.gpt import gpt, gpt_cuts
from ..graph_record import describe_graph
from ..in_stages import StagesTrainer, local_engine
from ..methods import DataFacts, method_named
from ..payloads import LanguageModel
from ..run import Run
from ..run_monitor import brief_quality, pack, unpack
from ..settings import RuleSettings
from ..trainers import TokenCrossEntropy, Trainer, TrainerSpec, make_trainer, precision_context
from .task import Evaluation, Task

__all__ = ["LanguageModelTask", "tokens_for"]


def tokens_for(run: Run) -> TokenText:
    """Load the text of a run as tokens, onto its device; it is cached for all runs of this process.

    A file is read anew if it has changed.
    """
    payload = run.payload
    assert isinstance(payload, LanguageModel)
    path = own_text(payload.data)
    status = path.stat() if path is not None and path.exists() else None
    version = None if status is None else (status.st_mtime_ns, status.st_size)
    return _cached(version, payload.data, run.data_dir, payload.tokens, payload.vocabulary, run.device)


@lru_cache(maxsize=2)
def _cached(
    version: Any, name: str, data_dir: str | None, tokens: str, vocabulary: int | None, device: str
) -> TokenText:
    directory = Path(data_dir) if data_dir else None
    return load_tokens(name, directory, tokens, vocabulary).to(torch.device(device))


class LanguageModelTask(Task):
    """Trains a GPT; a step is a batch of windows, which depend on the run's seed and the number of the step alone.

    Attributes:
        text: the text, loaded by `set_up`.
        windows: windows of the training part.
        probe: inputs and targets from the validation part, on which credits are held against the true gradient.
    """

    chunk = 10
    finite = ("val_bits_per_char",)

    text: TokenText
    windows: TokenWindows
    probe: tuple[Tensor, Tensor]
    trainer: Trainer

    def __init__(self, run: Run) -> None:
        assert isinstance(run.payload, LanguageModel)
        self.payload = run.payload
        super().__init__(run)
        self._next = 0  # number of the next step
        self._num_parameters = 0
        self._losses: list[Tensor] = []  # training losses since the last evaluation

    def set_up(self) -> None:
        """Load the text, and build network and trainer."""
        run, payload = self.run, self.payload
        self.text = tokens_for(run)
        self.data_sha256 = self.text.sha256
        self.windows = TokenWindows(self.text.train, payload.context, run.schedule.batch_size, run.seed)
        context = min(payload.context, len(self.text.valid) - 1)
        self.probe = TokenWindows(self.text.valid, context, run.schedule.batch_size, seed=0).batch(0)
        model = gpt(
            self.text.vocabulary,
            width=payload.width,
            blocks=payload.layers,
            heads=payload.heads,
            context=payload.context,
            tied=payload.tied,
        ).to(run.device)
        self._num_parameters = sum(p.numel() for p in model.parameters())
        assert isinstance(run.rule, RuleSettings)
        spec = TrainerSpec(
            method_named(run.method),
            run.rule,
            DataFacts(self.text.vocabulary, len(self.text.train)),
            run.schedule.lr,
            run.seed,
            local_engine(payload.engine),
            precision=run.precision,
            tokens=True,
            tied_lag=payload.tied_lag if payload.tied else None,
            free_running=payload.free_running,
            **run.schedule.of_optimizer(),
        )
        cuts = list(payload.at) or (
            [] if payload.modules is None else gpt_cuts(payload.layers, payload.modules)
        )
        self.net, self.trainer = make_trainer(spec, model, cuts, self.windows.batch(0)[0])
        self.graph = describe_graph(self.net, payload.engine)

    def begin(self, step: int) -> None:
        self._next = step
        self.net.train()

    def step(self) -> bool:
        """Train on one batch of windows."""
        x, y = self.windows.batch(self._next)
        self._next += 1
        with precision_context(self.run.precision, self.run.device):
            loss = self.trainer.step(x, y).loss
        if loss is not None:
            self._losses.append(loss.detach())
        return False

    def evaluate(self, step: int) -> Evaluation:
        """Evaluate the network on the validation part."""
        if not self._in_stages:
            self.trainer.flush()
        valid = self._measure(self.text.valid[: self.payload.most_valid])
        losses, self._losses = self._losses, []
        train = float(torch.stack(losses).mean()) if losses else None
        point: Evaluation = {
            "tokens_seen": self._tokens_seen(step),
            "train_loss": train,
            "train_bits_per_char": None
            if train is None
            else bits(train) / self.text.characters_per_token.train,
            "val_loss": None if valid is None else valid.nats_per_token,
            "val_bits_per_char": None if valid is None else valid.bits_per_char,
        }
        if found := self._quality():
            point["quality"] = brief_quality(found)
            for name, weight in self._weights().items():
                point["quality"].setdefault(name, {})["weight"] = weight
        return point

    def _weights(self) -> Mapping[str, float]:
        """Return the weight of the newest correction at each interface that corrects, by name."""
        assert isinstance(self.net, Decoupled)
        found: dict[str, float] = {}
        for name, interface in self.net.interfaces.items():
            weight = interface.rule.last_weight if isinstance(interface.rule, LateCorrection) else None
            if weight is not None:
                found[name] = weight
        return found

    def _quality(self) -> Mapping[str, Quality]:
        """Compare credits with the true gradient, on a batch of the validation part that is always the same."""
        if not isinstance(self.net, Decoupled) or not self.payload.monitor_every or self._in_stages:
            return {}  # no stage has the whole network
        x, y = self.probe
        with precision_context(self.run.precision, self.run.device):
            return credit_quality(self.net, TokenCrossEntropy(), x, y)

    def metrics(self, curve: Sequence[Evaluation], elapsed_s: float) -> dict[str, Any]:
        """Return the final figures of the test and validation part: nats per token, and bits per character."""
        test = self._measure(self.text.test)
        return {
            "bits_per_char": None if test is None else test.bits_per_char,
            "test_loss": None if test is None else test.nats_per_token,
            "val_bits_per_char": curve[-1]["val_bits_per_char"],
            "val_loss": curve[-1]["val_loss"],
            "tokens_seen": self._tokens_seen(self.run.schedule.steps),
            "num_parameters": self._num_parameters,
            "data_sha256": self.text.sha256,
        }

    def _tokens_seen(self, step: int) -> int:
        return step * self.run.schedule.batch_size * self.payload.context

    @property
    def _in_stages(self) -> bool:
        return isinstance(self.trainer, StagesTrainer)

    def flush(self) -> None:
        """Gather the network at the end, if each process has trained a stage."""
        if self._in_stages:
            self.trainer.flush()

    def _measure(self, tokens: Tensor) -> TokenLoss | None:
        """Return the loss on a part of the text; None in a stage that is not the last. Stages pass activations on."""
        context, batch_size = self.payload.context, self.run.schedule.batch_size
        with precision_context(self.run.precision, self.run.device):
            if isinstance(self.trainer, StagesTrainer):
                return token_loss_of(self.trainer.predict, self.text, tokens, context, batch_size)
            return token_loss(self.net, self.text, tokens, context, batch_size)

    def state_dict(self) -> dict[str, Any]:
        return {"losses": pack(self._losses)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._losses = unpack(state["losses"])
