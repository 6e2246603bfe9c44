"""With the true gradient every engine trains a GPT as backpropagation does: masks, accumulation, two optimizers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import synthgrad as sg
from synthgrad.core import Decoupled
from synthgrad.engines import InProcess, Locked, Stages
from synthgrad.engines.stages.transport import run_in_memory
from synthgrad.lab.tasks.gpt import gpt
from synthgrad.rules import TrueGradient

VOCABULARY, CONTEXT, BATCH = 11, 7, 5
CUTS = ("block1", "block2")
UPDATES = 3


def model(*, tied: bool = False) -> nn.Sequential:
    torch.manual_seed(0)
    return gpt(VOCABULARY, width=8, blocks=3, heads=2, context=CONTEXT, tied=tied).double()


def batches(number: int) -> list[tuple[Tensor, Tensor]]:
    """Return ids and targets; each example has another number of targets, and one has none."""
    made = torch.Generator().manual_seed(1)
    found: list[tuple[Tensor, Tensor]] = []
    for _ in range(number):
        ids = torch.randint(VOCABULARY, (BATCH, CONTEXT + 1), generator=made)
        x, y = ids[:, :-1].contiguous(), ids[:, 1:].clone()
        for row, length in enumerate(torch.randint(1, CONTEXT + 1, (BATCH,), generator=made).tolist()):
            y[row, length:] = -100
        y[2] = -100
        found.append((x, y))
    return found


def criterion(scores: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(scores.flatten(0, 1), y.flatten())


def two_optimizers(parameters: Any) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of blocks, AdamW for the rest."""
    parameters = list(parameters)
    matrices = [p for p in parameters if p.ndim == 2 and VOCABULARY not in p.shape]
    rest = [p for p in parameters if not (p.ndim == 2 and VOCABULARY not in p.shape)]
    return [
        *([torch.optim.Muon(matrices, 0.01, weight_decay=0.1)] if matrices else []),
        *([torch.optim.AdamW(rest, 0.01, weight_decay=0.1)] if rest else []),
    ]


def backprop(size: int, *, tied: bool = False) -> nn.Module:
    """Return the network after plain training: an update is the mean gradient of ``size`` batches."""
    net = model(tied=tied)
    optimizers = two_optimizers(net.parameters())
    for k, (x, y) in enumerate(batches(UPDATES * size), 1):
        (criterion(net(x), y) / size).backward()
        if k % size == 0:
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
    return net


def decoupled(*, tied: bool = False, at: tuple[str, ...] = CUTS) -> Decoupled:
    return sg.decouple(model(tied=tied), at, TrueGradient(), batches(1)[0][0], reduction="tokens")


def assert_equal(ours: nn.Module, theirs: nn.Module) -> None:
    expected = dict(theirs.named_parameters())
    start = dict(model().named_parameters())
    for name, p in ours.named_parameters():
        assert torch.allclose(p, expected[name], rtol=1e-9, atol=1e-11), name
        assert not torch.equal(p, start[name]), f"'{name}' has not learned"


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("engine", [InProcess, Locked])
def test_every_engine_is_backpropagation(engine: Any, size: int) -> None:
    net = decoupled()
    trainer = engine(net, criterion, two_optimizers, accumulate=size)
    for x, y in batches(UPDATES * size):
        trainer.step(x, y)
    assert_equal(net.model, backprop(size))


@pytest.mark.parametrize("size", [1, 2])
def test_tied_embeddings_in_the_plain_loop(size: int) -> None:
    net = decoupled(tied=True)
    trainer = Locked(net, criterion, two_optimizers, accumulate=size)
    for x, y in batches(UPDATES * size):
        trainer.step(x, y)
    assert_equal(net.model, backprop(size, tied=True))


def test_stages_are_backpropagation() -> None:
    found = run_in_memory(3, _stage)
    expected = backprop(1).state_dict()
    for state in found:
        for name, value in state.items():
            assert torch.allclose(value, expected[name], rtol=1e-9, atol=1e-11), name


def _stage(transport: Any) -> dict[str, Tensor]:
    net = decoupled()
    with Stages(
        net, criterion, two_optimizers, window=0, deterministic=True, timeout_s=60, transport=transport
    ) as trainer:
        for x, y in batches(UPDATES):
            trainer.step(x if transport.rank == 0 else None, y)
        trainer.gather()
    return {n: v.clone() for n, v in net.model.state_dict().items()}
