"""One training step of any method as a function without arguments, for benchmarks to call."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..core import ConfigError, Decoupled, decouple
from ..engines import InProcess, Locked
from ..tasks import cut_names, fully_connected
from .config import RuleSettings
from .methods import Facts, method_named

__all__ = ["HAND_WRITTEN", "StepKind", "compile_modules", "compile_network", "make_step"]

#: The loop that anybody would write, in the place of an engine.
HAND_WRITTEN = "hand-written loop"

_LR = 3e-4


@dataclass(frozen=True, slots=True)
class StepKind:
    """What a step is made of.

    Attributes:
        method: name.
        engine: ``in-process``, ``plain``, or the hand-written loop.
        update_prob: of each module, in the in-process engine.
        compiled: by ``torch.compile``: the whole forward pass with its loss where one backward pass
            follows, else each module by itself.
    """

    method: str
    engine: str
    update_prob: float = 1.0
    compiled: bool = False


def make_step(
    kind: StepKind, width: int, layers: int, batches: Sequence[tuple[Tensor, Tensor]], seed: int
) -> Callable[[], object]:
    """Build a fully connected network and its trainer; every call of the result takes the next batch.

    Args:
        kind: what to build. Rules have a linear ``M``.
        width: units of a hidden layer.
        layers: weight layers, the output layer included.
        batches: images and labels, on the device; taken in turn.
        seed: of the initial weights and of draws.
    """
    feed = itertools.cycle(batches)
    x = batches[0][0]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = fully_connected(x.shape[1:], 10, layers, width).to(x.device)
    criterion = nn.CrossEntropyLoss()
    rule = method_named(kind.method).rule
    if rule is None:
        return _hand_written(model, criterion, feed, compiled=kind.compiled)
    facts = Facts(10, sum(len(y) for _, y in batches))
    net = decouple(model, cut_names(model), rule(RuleSettings(), facts), x)
    if kind.compiled:
        compile_network(net, kind.engine)
    if kind.engine == "plain":
        trainer: Locked | InProcess = Locked(net, criterion, _adam)
    else:
        generator = torch.Generator().manual_seed(seed)
        trainer = InProcess(net, criterion, _adam, update_prob=kind.update_prob, generator=generator)
    ids = torch.arange(len(x), device=x.device)
    return lambda: trainer.step(*next(feed), ids=ids)


def compile_network(net: nn.Module, engine: str) -> None:
    """Compile a network in place, as its engine allows.

    The in-process engine of a decoupled network has each module compiled by itself, see `compile_modules`;
    every other loop the whole forward pass, which must be one graph.

    Args:
        net: the network, decoupled or not.
        engine: ``in-process``, ``plain``, or the hand-written loop.

    Raises:
        ConfigError: if its modules cannot be compiled one by one.
    """
    if isinstance(net, Decoupled) and engine == "in-process":
        compile_modules(net)
    else:
        net.forward = torch.compile(net.forward, fullgraph=True)


def compile_modules(net: Decoupled) -> None:
    """Compile the forward pass of each child of the network, in place.

    The interfaces, which are forward hooks, stay outside: the unlocked engine runs backward passes and
    optimizers in them, which no graph can hold.

    Raises:
        ConfigError: if a cut lies inside a child.
    """
    children = dict(net.model.named_children())
    if inside := [name for name in net.interfaces if name not in children]:
        raise ConfigError(
            f"cut after '{inside[0]}': modules are compiled one by one only where cuts lie after the network's "
            f"own children ({', '.join(children)}); cut there or do not compile"
        )
    for child in net.model.children():
        child.forward = torch.compile(child.forward, fullgraph=True)


def _adam(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, _LR, fused=True)


def _hand_written(
    model: nn.Module, criterion: nn.Module, feed: Iterator[tuple[Tensor, Tensor]], *, compiled: bool
) -> Callable[[], None]:
    """Return the loop that anybody would write: eager, it is the 1.0 of every ratio."""
    optimizer = _adam(model.parameters())

    def loss_of(x: Tensor, y: Tensor) -> Tensor:
        return criterion(model(x), y)

    forward = torch.compile(loss_of, fullgraph=True) if compiled else loss_of

    def step() -> None:
        x, y = next(feed)
        optimizer.zero_grad()
        forward(x, y).backward()
        optimizer.step()

    return step
