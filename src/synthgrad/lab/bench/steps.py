"""One training step of any method as a function without arguments, for benchmarks to call."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..tasks import convolutional, cut_names, fully_connected
from ..training.compiled import compile_network
from ..training.methods import DataFacts, Method, method_named
from ..training.settings import RuleSettings
from ..training.trainers import CHANNELS_LAST, TrainerSpec, make_trainer, precision_context

__all__ = ["HAND_WRITTEN", "Network", "StepCase", "hand_written", "make_step"]

#: The loop that anybody would write, in the place of an engine.
HAND_WRITTEN = "hand-written loop"

_LR = 3e-4


@dataclass(frozen=True, slots=True)
class StepCase:
    """What a step is made of.

    Attributes:
        method: name.
        engine: ``in-process``, ``plain``, or the hand-written loop.
        update_prob: probability that a module updates in a step, in the in-process engine.
        compiled: by ``torch.compile``: the whole forward pass with its loss where one backward pass
            follows, else each module by itself.
    """

    method: str
    engine: str
    update_prob: float = 1.0
    compiled: bool = False


@dataclass(frozen=True, slots=True)
class Network:
    """What a step trains, and with which arithmetic.

    Attributes:
        width: units, or filters, of a hidden layer.
        layers: weight layers, the output layer included.
        arch: ``fcn``, or ``cnn``, whose images and filters lie channels last.
        precision: ``float32`` or ``bfloat16``.
    """

    width: int
    layers: int
    arch: str = "fcn"
    precision: str = "float32"

    def settings(self, method: Method) -> RuleSettings:
        """Return what a method's rule is measured with: a linear ``M``, or what was chosen for images."""
        return method.settings("cifar10", "cnn") if self.arch == "cnn" else method.defaults[""]


def make_step(
    case: StepCase, network: Network, batches: Sequence[tuple[Tensor, Tensor]], seed: int
) -> Callable[[], object]:
    """Build a network and its trainer; every call of the result takes the next batch.

    Args:
        case: what to build.
        network: the network.
        batches: inputs and labels in 10 classes, on the device, in the network's layout; taken in turn.
        seed: of the initial weights and of draws.
    """
    feed = itertools.cycle(batches)
    x = batches[0][0]
    make = convolutional if network.arch == "cnn" else fully_connected
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = make(x.shape[1:], 10, network.layers, network.width)
        model = model.to(x.device, memory_format=CHANNELS_LAST)  # pyright: ignore[reportCallIssue]
        method = method_named(case.method)
        if case.engine == HAND_WRITTEN:
            return hand_written(model, feed, precision=network.precision, compiled=case.compiled)
        facts = DataFacts(10, sum(len(y) for _, y in batches))
        plan = TrainerSpec(
            method,
            network.settings(method),
            facts,
            _LR,
            seed,
            case.engine,
            case.update_prob,
            network.precision,
        )
        net, trainer = make_trainer(plan, model, cut_names(model), x)
    if case.compiled:
        compile_network(net, case.engine)
    ids = torch.arange(len(x), device=x.device)
    if network.precision == "float32":
        return lambda: trainer.step(*next(feed), ids=ids)

    def step() -> None:
        with precision_context(network.precision, x.device.type):
            trainer.step(*next(feed), ids=ids)

    return step


def hand_written(
    model: nn.Module,
    feed: Iterator[tuple[Tensor, Tensor]],
    *,
    precision: str = "float32",
    compiled: bool = False,
    options: dict[str, Any] | None = None,
) -> Callable[[], None]:
    """Return the loop that anybody would write: eager, it is the 1.0 of every ratio.

    Args:
        model: the network, on its device.
        feed: batches.
        precision: ``float32`` or ``bfloat16``.
        compiled: compile the forward pass with its loss, as one graph.
        options: of the compiler.
    """
    optimizer = torch.optim.Adam(model.parameters(), _LR, fused=True)
    criterion = nn.CrossEntropyLoss()

    def loss_of(x: Tensor, y: Tensor) -> Tensor:
        return criterion(model(x).float(), y)

    forward = torch.compile(loss_of, fullgraph=True, options=options) if compiled else loss_of

    def step() -> None:
        x, y = next(feed)
        optimizer.zero_grad()
        if precision == "float32":
            loss = forward(x, y)
        else:
            with torch.autocast(x.device.type, torch.bfloat16):
                loss = forward(x, y)
        loss.backward()
        optimizer.step()

    return step
