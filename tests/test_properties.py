"""Random shapes, batches and cuts: what holds for all of them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

import synthgrad as sg
from synthgrad.rules import record_messages

CLASSES = 4
quickly = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
widths = st.lists(st.integers(1, 9), min_size=2, max_size=5)


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, 0.05)


def stack(sizes: list[int]) -> nn.Sequential:
    torch.manual_seed(0)
    pairs = list(zip([3, *sizes], sizes, strict=False))
    parts = [nn.Sequential(nn.Linear(a, b), nn.Tanh()) for a, b in pairs]
    return nn.Sequential(*parts, nn.Linear(sizes[-1], CLASSES)).double()


def batch(size: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(size, 3, generator=generator, dtype=torch.float64)
    return x, torch.randint(0, CLASSES, (size,), generator=generator)


@quickly
@given(sizes=widths, data=st.data(), size=st.integers(1, 7), engine=st.sampled_from(["InProcess", "Locked"]))
def test_oracle_equals_backprop_for_any_stack_and_cuts(
    sizes: list[int], data: st.DataObject, size: int, engine: str
) -> None:
    names = [str(k) for k in range(len(sizes))]
    at = data.draw(st.lists(st.sampled_from(names), min_size=1, unique=True))
    reference = stack(sizes)
    optimizer = sgd(reference.parameters())

    def step(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()

    batches = [batch(size, seed) for seed in range(3)]
    recording = record_messages(reference, at, step, batches)
    net = sg.decouple(stack(sizes), at, sg.Oracle(recording), batches[0][0])
    trainer = getattr(sg.engines, engine)(net, F.cross_entropy, sgd)
    for x, y in batches:
        trainer.step(x, y)
    for name, value in net.model.state_dict().items():
        assert torch.allclose(value, reference.state_dict()[name], atol=1e-12), f"'{name}' differs"


@quickly
@given(size=st.integers(0, 5), hidden=st.lists(st.integers(1, 5), max_size=2), context=st.booleans())
def test_any_batch_size_after_any_example(size: int, hidden: list[int], context: bool) -> None:
    rule = sg.SyntheticGradient(hidden, CLASSES if context else None, norm=False)
    net = sg.decouple(stack([5, 5]), ["0", "1"], rule, batch(4)[0])
    x, y = batch(size)
    output = net(x, context=y)
    assert output.shape == (size, CLASSES)
    F.cross_entropy(output, y, reduction="sum").backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


@quickly
@given(
    size=st.integers(2, 6),
    channels=st.integers(1, 4),
    side=st.integers(1, 6),
    kernel=st.sampled_from([1, 3, 5]),
)
def test_convolutional_messages_keep_their_shape(size: int, channels: int, side: int, kernel: int) -> None:
    rule = sg.SyntheticGradient(context=CLASSES, model=sg.rules.models.convolutional((3,), kernel=kernel))
    model = nn.Sequential(
        nn.Conv2d(1, channels, 3, padding=1), nn.Sequential(nn.Flatten(), nn.LazyLinear(CLASSES))
    )
    x = torch.randn(size, 1, side, side)
    model(x)
    net = sg.decouple(model, ["0"], rule, x)
    y = torch.arange(size) % CLASSES
    if side == 1 and size == 1:
        return
    F.cross_entropy(net(x, context=y), y).backward()
    assert all(p.grad is not None for p in net.parameters())


@pytest.mark.parametrize("engine", ["InProcess", "Locked"])
def test_a_batch_of_one_meets_batchnorm(engine: str) -> None:
    """The error is PyTorch's own; the state of the run is as before, and it goes on."""
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, CLASSES)).double()
    net = sg.decouple(model, ["1"], sg.SyntheticGradient(), batch(4)[0])
    trainer = getattr(sg.engines, engine)(net, F.cross_entropy, sgd)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        trainer.step(*batch(1))
    assert trainer.step(*batch(4)).loss is not None
    assert torch.is_grad_enabled()
