"""What ``bench chaos`` and ``bench absence`` train: a network in stages, and the batch of every number.

Every process makes the same network and finds the same batch for a number, whenever it comes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ....core import Decoupled, Rule, decouple
from ....core.units import Reduction
from ....engines import OptimizerFactory, Stages
from ....engines.stages.transport.elastic import ElasticTransport
from ....rules import LocalLoss, SyntheticGradient, SyntheticInput, heads
from ...tasks import LabelledData, TokenText, TokenWindows, fully_connected, load, load_tokens, token_loss
from ...tasks.gpt import gpt, gpt_cuts
from ...training.optimizers import optimizer_factory

__all__ = ["Work", "work_of"]

_CLASSES = 10
_HEADS, _CONTEXT = 4, 64
#: Tokens of the validation part that a language model is tested on.
_MOST_VALID = 1 << 16


@dataclass(frozen=True, slots=True)
class Work(ABC):
    """What is trained.

    Attributes:
        data, data_dir: the data set or text, and the directory of its files.
        width, layers, batch_size: of the network: blocks of a GPT; else layers, the output layer included.
        seed: of weights and data.
    """

    data: str
    data_dir: str | None
    width: int
    layers: int
    batch_size: int
    seed: int

    #: What `error` measures, as records name it.
    metric: ClassVar[str] = ""
    #: The optimizer by name, and its learning rate.
    optimizer_name: ClassVar[str] = ""
    lr: ClassVar[float] = 0.0
    #: What makes the head of a local loss; None for a linear one.
    head: ClassVar[heads.HeadFactory | None] = None
    #: How the loss of a batch comes from its examples; see `Stages`.
    reduction: ClassVar[Reduction] = "mean"

    @abstractmethod
    def model(self) -> nn.Sequential:
        """Return the whole network, with the same weights at every call."""

    @abstractmethod
    def cuts(self, stages: int) -> list[str]:
        """Return the name of the last layer of each stage but the last."""

    @property
    @abstractmethod
    def classes(self) -> int:
        """The number of outputs."""

    @abstractmethod
    def example(self, rows: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return an input, an output of a stage that is not the last, and a final output, whose values mean nothing."""

    @abstractmethod
    def batches(self) -> Callable[[int], tuple[Tensor, Tensor]]:
        """Return a function from a number to a batch."""

    @abstractmethod
    def criterion(self, output: Tensor, target: Tensor) -> Tensor:
        """Return the loss of a batch, a mean."""

    def optimizer(self, net: nn.Module) -> OptimizerFactory:
        """Return what makes the optimizers of some parameters of a network."""
        return optimizer_factory(self.optimizer_name, self.lr, net)

    @abstractmethod
    def error(self, model: nn.Module) -> float:
        """Return the error of a network on data that it was not trained on, in the unit of `metric`."""

    def decoupled(self, stages: int, rule: str, *, synthetic: bool) -> Decoupled:
        """Return the network with a rule between every two stages."""
        with torch.random.fork_rng():
            model = self.model()
            example = self.example(2)[0]
            inputs = SyntheticInput() if synthetic else None
            return decouple(
                model,
                self.cuts(stages),
                self._rule(rule),
                example,
                inputs=inputs,
                reduction=self.reduction,
            )

    def _rule(self, name: str) -> Rule:
        made: Mapping[str, Callable[[], Rule]] = {
            "cdni": partial(SyntheticGradient, context=self.classes),
            "dni": SyntheticGradient,
            "local_loss": partial(LocalLoss, self.classes, self.head),
        }
        return made[name]()

    def trainer(self, net: Decoupled, transport: ElasticTransport, **how: Any) -> Stages:
        """Return a stage that goes on without the others; ``how`` are settings of `Stages`."""
        return Stages(
            net,
            self.criterion,
            self.optimizer(net),
            transport=transport,
            on_loss="continue",
            seed=self.seed,
            **how,
        )

    @staticmethod
    def weights_of(state: Mapping[str, Tensor], owned: Collection[str]) -> dict[str, Tensor]:
        """Return the weights of the model, by their names in it, that a stage owns, of the state of its decoupled network."""
        return {
            name.removeprefix("model."): t
            for name, t in state.items()
            if name in owned and name.startswith("model.")
        }


class _Digits(Work):
    """A fully connected network on MNIST."""

    metric = "test_error_pct"
    optimizer_name, lr = "adam", 3e-4
    reduction = "mean"

    @property
    def classes(self) -> int:
        return _CLASSES

    def model(self) -> nn.Sequential:
        torch.manual_seed(self.seed)
        return fully_connected((1, 28, 28), _CLASSES, self.layers, self.width)

    def cuts(self, stages: int) -> list[str]:
        names = [f"layer{k + 1}" for k in range(self.layers)]
        return [names[self.layers * (k + 1) // stages - 1] for k in range(stages - 1)]

    def example(self, rows: int) -> tuple[Tensor, Tensor, Tensor]:
        return torch.zeros(rows, 1, 28, 28), torch.zeros(rows, self.width), torch.zeros(rows, _CLASSES)

    def batches(self) -> Callable[[int], tuple[Tensor, Tensor]]:
        images = _images_of(self.data, self.data_dir).train
        per_epoch = len(images) // self.batch_size
        orders: dict[int, Tensor] = {}

        def batch(number: int) -> tuple[Tensor, Tensor]:
            epoch, k = divmod(number, per_epoch)
            if epoch not in orders:
                orders.clear()
                drawn = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
                orders[epoch] = torch.randperm(len(images), generator=drawn)
            ids = orders[epoch][k * self.batch_size : (k + 1) * self.batch_size]
            return images.x[ids], images.y[ids]

        return batch

    def criterion(self, output: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(output, target)

    def error(self, model: nn.Module) -> float:
        images = _images_of(self.data, self.data_dir).test
        model.eval()
        with torch.no_grad():
            wrong = sum(
                int((model(x).argmax(1) != y).sum())
                for x, y in zip(images.x.split(1000), images.y.split(1000), strict=True)
            )
        return 100.0 * wrong / len(images)


class _Tokens(Work):
    """A GPT on the characters of a text."""

    metric = "val_bits_per_char"
    optimizer_name, lr = "adamw", 1e-3
    head = staticmethod(heads.token_head(0))
    reduction = "tokens"

    @property
    def classes(self) -> int:
        return self._text.vocabulary

    @property
    def _text(self) -> TokenText:
        return _text_of(self.data, self.data_dir)

    def model(self) -> nn.Sequential:
        torch.manual_seed(self.seed)
        return gpt(
            self._text.vocabulary, width=self.width, blocks=self.layers, heads=_HEADS, context=_CONTEXT
        )

    def cuts(self, stages: int) -> list[str]:
        return gpt_cuts(self.layers, stages)

    def example(self, rows: int) -> tuple[Tensor, Tensor, Tensor]:
        ids = torch.zeros(rows, _CONTEXT, dtype=torch.int64)
        return (
            ids,
            torch.zeros(rows, _CONTEXT, self.width),
            torch.zeros(rows, _CONTEXT, self._text.vocabulary),
        )

    def batches(self) -> Callable[[int], tuple[Tensor, Tensor]]:
        return TokenWindows(self._text.train, _CONTEXT, self.batch_size, self.seed).batch

    def criterion(self, output: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(output.flatten(0, 1), target.flatten())

    def error(self, model: nn.Module) -> float:
        found: Any = token_loss(model, self._text, self._text.valid[:_MOST_VALID], _CONTEXT)
        return found.bits_per_char


@cache
def _images_of(data: str, data_dir: str | None) -> LabelledData:
    return load(data, None if data_dir is None else Path(data_dir))


@cache
def _text_of(data: str, data_dir: str | None) -> TokenText:
    return load_tokens(data, None if data_dir is None else Path(data_dir))


def work_of(
    arch: str, data: str, data_dir: str | None, *, width: int, layers: int, batch_size: int, seed: int
) -> Work:
    """Return what a network's name stands for, ``fcn`` or ``gpt``."""
    return (_Tokens if arch == "gpt" else _Digits)(data, data_dir, width, layers, batch_size, seed)
