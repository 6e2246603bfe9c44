"""Recurrent modules as parts of a chain."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from synthgrad import SyntheticGradient, decouple
from synthgrad.core import ShapeError
from synthgrad.engines import Carry, InProcess


def lstm(inputs: int = 4) -> Carry:
    torch.manual_seed(0)
    return Carry(nn.LSTM(inputs, 8, batch_first=True))


def test_two_unrolls_are_one_of_twice_the_length() -> None:
    carry, x = lstm(), torch.randn(3, 10, 4)
    whole, _ = carry.module(x)
    torch.testing.assert_close(torch.cat((carry(x[:, :5]), carry(x[:, 5:])), 1), whole)


def test_credit_ends_at_the_start_of_an_unroll() -> None:
    carry, x = lstm(), torch.randn(3, 5, 4, requires_grad=True)
    carry(x)
    carry(torch.randn(3, 5, 4)).sum().backward()
    assert x.grad is None


def test_reset_and_another_batch_size_begin_anew() -> None:
    carry, x = lstm(), torch.randn(3, 5, 4)
    first = carry(x)
    assert not torch.equal(carry(x), first)
    carry.reset()
    assert torch.equal(carry(x), first)
    assert torch.equal(carry(x[:2]), first[:2])


def test_evaluation_has_a_state_of_its_own() -> None:
    carry, twin, x = lstm(), lstm(), torch.randn(3, 5, 4)
    carry(x)
    carry.eval()(torch.randn(3, 5, 4))
    carry.train()
    twin(x)
    assert torch.equal(carry(x), twin(x))


def test_the_state_is_no_part_of_the_state_dict() -> None:
    carry = lstm()
    carry(torch.randn(3, 5, 4))
    assert set(carry.state_dict()) == {f"module.{name}" for name in carry.module.state_dict()}


def test_a_module_without_a_state_is_refused() -> None:
    class Stateless(nn.Module):
        def forward(self, x: Tensor, state: object) -> Tensor:
            return x

    with pytest.raises(ShapeError, match="Stateless returned a Tensor, expected a pair"):
        Carry(Stateless())(torch.randn(2, 3))


def test_a_stack_is_cut_and_trained_like_any_chain() -> None:
    model = nn.Sequential(lstm(), Carry(nn.GRU(8, 8, batch_first=True)), nn.Linear(8, 4))
    x, y = torch.randn(3, 5, 4), torch.randint(4, (3, 5))
    net = decouple(
        model, ["0"], SyntheticGradient(context=4), x, reduction=lambda h: float(h.shape[0] * h.shape[1])
    )

    def criterion(scores: Tensor, targets: Tensor) -> Tensor:
        return nn.functional.cross_entropy(scores.flatten(0, 1), targets.flatten())

    engine = InProcess(net, criterion, lambda p: torch.optim.Adam(p, 1e-2))
    before = copy.deepcopy(net.state_dict())
    losses = [engine.step(x, y).loss for _ in range(60)]
    assert losses[-1] < losses[0] / 2  # pyright: ignore[reportOperatorIssue]
    assert all(not torch.equal(before[name], t) for name, t in net.state_dict().items() if t.ndim)
