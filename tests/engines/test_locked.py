"""Sparse updates of the locked network: skipped steps leave the weights, and the draws are resumed."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from synthgrad.core import ConfigError
from synthgrad.engines import Locked

STEPS = 40


def _adam(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, 1e-2)


def _network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))


def _batches(num: int = STEPS) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(6, 5, generator=generator), torch.randint(3, (6,), generator=generator))
        for _ in range(num)
    ]


def _locked(net: nn.Module, prob: float, seed: int = 2) -> Locked:
    generator = torch.Generator().manual_seed(seed)
    return Locked(net, nn.CrossEntropyLoss(), _adam, update_prob=prob, generator=generator)


def test_a_step_without_update_runs_forward_only() -> None:
    net = _network()
    trainer = _locked(net, 0.3)
    for x, y in _batches():
        weights = [p.detach().clone() for p in net.parameters()]
        seen = int(net[1].num_batches_tracked)  # type: ignore[index]
        done = trainer.step(x, y)
        changed = any(not torch.equal(a, b) for a, b in zip(weights, net.parameters(), strict=True))
        assert changed == (done.updated == ["all"])
        assert done.updated in ([], ["all"])
        assert done.loss is not None
        assert int(net[1].num_batches_tracked) == seen + 1  # type: ignore[index]


def test_updates_come_as_often_as_the_probability_says() -> None:
    trainer = _locked(_network(), 0.3)
    done = [bool(trainer.step(x, y).updated) for x, y in _batches(400)]
    assert 80 < sum(done) < 160  # 120 expected; far outside what chance does


def test_the_updates_are_those_of_training_on_these_batches_alone() -> None:
    sparse, dense = _network(), _network()
    for module in (sparse[1], dense[1]):  # type: ignore[index]
        module.momentum = 0.0  # running statistics see skipped batches too; the weights do not
    trainer, every = _locked(sparse, 0.5), Locked(dense, nn.CrossEntropyLoss(), _adam)
    for x, y in _batches():
        if trainer.step(x, y).updated:
            every.step(x, y)
    for (name, a), b in zip(sparse.named_parameters(), dense.parameters(), strict=True):
        assert torch.equal(a, b), name


def test_draws_go_on_where_they_were() -> None:
    net = _network()
    trainer = _locked(net, 0.5)
    batches = _batches()
    for x, y in batches[:20]:
        trainer.step(x, y)
    again = copy.deepcopy(net)
    resumed = _locked(again, 0.5, seed=99)
    resumed.load_state_dict(copy.deepcopy(trainer.state_dict()))
    for x, y in batches[20:]:
        assert resumed.step(x, y).updated == trainer.step(x, y).updated
    for a, b in zip(net.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_state_without_draws_is_taken_up() -> None:
    trainer = _locked(_network(), 1.0)
    state = trainer.state_dict()
    del state["generator"]
    trainer.load_state_dict(state)
    assert trainer.step(*_batches(1)[0]).updated == ["all"]


@pytest.mark.parametrize("prob", [0.0, -0.1, 1.1, float("nan")])
def test_no_probability(prob: float) -> None:
    with pytest.raises(ConfigError, match="expected a probability over 0"):
        _locked(_network(), prob)
