"""A part that was put into evaluation mode stays in it, whatever is done to the network around it."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import synthgrad as sg
from synthgrad.core.modes import evaluating
from synthgrad.lab.tasks import Split
from synthgrad.lab.training.tasks.feed_forward import measure


def frozen() -> nn.Sequential:
    """A network whose first BatchNorm has statistics that must not change."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)
    )
    model[1].eval().requires_grad_(False)
    return model


def modes(model: nn.Module) -> list[bool]:
    return [part.training for part in model.modules()]


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    return torch.randn(16, 6) * 5, torch.randint(0, 3, (16,))


def test_decouple_and_recouple_keep_every_flag(batch: tuple[Tensor, Tensor]) -> None:
    model = frozen()
    net = sg.decouple(model, ["2"], sg.SyntheticGradient((4,), context=3), batch[0])
    assert modes(net.model) == modes(model)
    assert net.training
    assert net.rules.training
    assert modes(sg.recouple(net)) == modes(model)
    assert not sg.decouple(frozen().eval(), ["2"], sg.SyntheticGradient((4,)), batch[0]).rules["2"].training


def test_training_leaves_frozen_statistics_alone(batch: tuple[Tensor, Tensor]) -> None:
    model = frozen()
    plain = copy.deepcopy(model)
    net = sg.decouple(model, ["2"], sg.TrueGradient(), batch[0])
    trainer = sg.engines.InProcess(net, F.cross_entropy, lambda p: torch.optim.SGD(p, 0.1))
    optimizer = torch.optim.SGD([p for p in plain.parameters() if p.requires_grad], 0.1)
    for _ in range(3):
        trainer.step(*batch)
        optimizer.zero_grad()
        F.cross_entropy(plain(batch[0]), batch[1]).backward()
        optimizer.step()
    for name, value in plain.state_dict().items():
        assert torch.equal(net.model.state_dict()[name], value), name
    assert torch.equal(net.model[1].running_mean, torch.zeros(8))  # type: ignore[index,union-attr]


def test_evaluating_puts_back_what_it_found_also_after_an_error() -> None:
    model = frozen()
    before = modes(model)
    found: list[bool] = []

    def fails() -> None:
        with evaluating(model):
            found.extend(modes(model))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()
    assert not any(found)
    assert modes(model) == before


def test_a_measurement_during_a_run_keeps_every_flag(batch: tuple[Tensor, Tensor]) -> None:
    model = frozen()
    before = modes(model)
    measure(model, Split(*batch))
    assert modes(model) == before
