"""Difference target propagation: what goes down, what each of the two networks learns, and what is refused."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import synthgrad as sg
from synthgrad.core import ConfigError
from synthgrad.engines import InProcess
from synthgrad.rules import DifferenceTarget, TrueGradient


def linear(a: int, b: int) -> nn.Linear:
    return nn.Linear(a, b, bias=False).double()


def transposed(f: nn.Linear) -> nn.Linear:
    g = linear(f.out_features, f.in_features)
    g.weight = nn.Parameter(f.weight.detach().T.clone())
    return g


def test_with_the_transposed_matrix_it_is_backpropagation() -> None:
    torch.manual_seed(0)
    layers = [linear(5, 6), linear(6, 7), linear(7, 3)]
    x, y = torch.randn(9, 5).double(), torch.arange(9) % 3
    plain = nn.Sequential(*copy.deepcopy(layers))
    answering = nn.Sequential(
        layers[0], DifferenceTarget(layers[1], transposed(layers[1]), learns=False), layers[2]
    )
    for model in (plain, answering):
        F.cross_entropy(model(x), y).backward()
    for theirs, ours in zip(plain, (layers[0], layers[1], layers[2]), strict=True):
        torch.testing.assert_close(ours.weight.grad, theirs.weight.grad, rtol=1e-9, atol=1e-12)


def test_what_goes_down_is_a_difference_through_the_inverse() -> None:
    torch.manual_seed(1)
    f, g = nn.Sequential(linear(4, 6), nn.Tanh()), nn.Sequential(linear(6, 4), nn.Tanh())
    step = 0.5
    answering = DifferenceTarget(f, g, step=step)
    h, e = torch.randn(8, 4).double().requires_grad_(), torch.randn(8, 6).double()
    y = answering(h)
    y.backward(e)
    with torch.no_grad():
        scale = step * y.square().mean().sqrt() / e.square().mean().sqrt()
        target = y - scale * e
        expected = (g(y) - g(target)) / scale
    torch.testing.assert_close(h.grad, expected)
    again = h.detach().clone().requires_grad_()
    answering(again).backward(1e-3 * e)
    assert again.grad is not None
    torch.testing.assert_close(again.grad, 1e-3 * expected)  # the scale of the loss is none of its business


def test_each_network_learns_its_own_part() -> None:
    torch.manual_seed(2)
    inner, g = linear(4, 6), linear(6, 4)
    f = nn.Sequential(inner, nn.Tanh())
    answering = DifferenceTarget(f, g, noise=0.0)
    h, e = torch.randn(8, 4).double(), torch.randn(8, 6).double()
    answering(h.clone().requires_grad_()).backward(e)
    ours = [inner.weight.grad, g.weight.grad]
    answering.zero_grad()
    f(h).backward(e)
    F.mse_loss(g(f(h).detach()), h).backward()
    for mine, theirs in zip(ours, [inner.weight.grad, g.weight.grad], strict=True):
        torch.testing.assert_close(mine, theirs)


def test_the_inverse_becomes_one() -> None:
    torch.manual_seed(3)
    f, g = nn.Sequential(nn.Linear(4, 16), nn.Tanh()), nn.Linear(16, 4)
    answering, h = DifferenceTarget(f, g), torch.randn(256, 4)
    optimizer = torch.optim.Adam(g.parameters(), 1e-2)
    errors = []
    for _ in range(300):
        optimizer.zero_grad()
        answering(h).backward(torch.zeros(256, 16))
        optimizer.step()
        with torch.no_grad():
            errors.append(F.mse_loss(g(f(h)), h).item())
    assert errors[-1] < 0.05 * errors[0]


def test_no_difference_sends_none() -> None:
    answering = DifferenceTarget(nn.Linear(3, 3), nn.Linear(3, 3))
    h = torch.zeros(2, 3, requires_grad=True)
    answering(h).backward(torch.zeros(2, 3))
    assert h.grad is not None
    assert h.grad.tolist() == [[0.0] * 3] * 2
    all_zero = DifferenceTarget(nn.Linear(3, 3, bias=False), nn.Linear(3, 3))
    all_zero(h).backward(torch.ones(2, 3))
    assert torch.isfinite(h.grad).all()


@pytest.mark.parametrize("size", [1e-30, 1.0, 1e30])
def test_how_large_numbers_are_does_not_matter(size: float) -> None:
    torch.manual_seed(6)
    f, g = nn.Linear(4, 6), nn.Sequential(nn.Linear(6, 4), nn.Tanh())
    answering = DifferenceTarget(f, g)
    h, e = torch.randn(8, 4), torch.randn(8, 6)
    found = []
    for factor in (1.0, size):
        leaf = h.clone().requires_grad_()
        answering(leaf).backward(factor * e)
        assert leaf.grad is not None
        found.append(leaf.grad / factor)
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-6)


def test_nothing_to_say_of_large_activations_is_nothing() -> None:
    answering = DifferenceTarget(nn.Identity(), nn.Linear(3, 3))
    h = torch.full((2, 3), 1e6, requires_grad=True)
    answering(h).backward(torch.zeros(2, 3))
    assert h.grad is not None
    assert h.grad.tolist() == [[0.0] * 3] * 2


def test_one_number_alone_has_no_noise() -> None:
    g = nn.Linear(1, 1)
    h = torch.ones(1, 1, requires_grad=True)
    DifferenceTarget(nn.Linear(1, 1), g)(h).sum().backward()
    assert g.weight.grad is not None
    assert torch.isfinite(g.weight.grad).all()


def test_under_autocast_and_not_twice() -> None:
    answering = DifferenceTarget(nn.Linear(4, 6), nn.Linear(6, 4))
    h = torch.randn(8, 4, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        y = answering(h)
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    assert h.grad is not None
    assert h.grad.dtype == torch.float32
    (down,) = torch.autograd.grad(answering(h).square().sum(), h, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        down.sum().backward()


def test_rules_get_targets_and_the_engine_reads_nothing() -> None:
    """With the true message as rule, cut after every layer: the gradients of the uncut network, per parameter."""
    torch.manual_seed(4)

    def layers() -> nn.Sequential:
        torch.manual_seed(5)
        hidden = [
            nn.Sequential(linear(6, 6), nn.Tanh())
            if k == 0
            else DifferenceTarget(nn.Sequential(linear(6, 6), nn.Tanh()), linear(6, 6), noise=0.0)
            for k in range(3)
        ]
        return nn.Sequential(*hidden, linear(6, 4))

    x, y = torch.randn(10, 6).double(), torch.arange(10) % 4
    plain = layers()
    optimizer = torch.optim.SGD(plain.parameters(), 0.1)
    for _ in range(3):
        optimizer.zero_grad()
        F.cross_entropy(plain(x), y).backward()
        optimizer.step()
    model = layers()
    net = sg.decouple(model, ["0", "1", "2"], TrueGradient(), x)
    engine = InProcess(net, F.cross_entropy, lambda p: torch.optim.SGD(p, 0.1))
    for _ in range(3):
        engine.step(x, y)
    for (name, theirs), ours in zip(plain.named_parameters(), sg.recouple(net).parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12, msg=name)


def test_what_cannot_be_run_twice_is_refused() -> None:
    with pytest.raises(ConfigError, match="module.1: a BatchNorm1d with running statistics"):
        DifferenceTarget(nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)), nn.Linear(3, 3))
    with pytest.raises(ConfigError, match="inverse.0: a BatchNorm1d with running statistics"):
        DifferenceTarget(nn.Linear(3, 3), nn.Sequential(nn.BatchNorm1d(3)))
    with pytest.raises(
        ConfigError, match="inverse.1: a Dropout; two runs would leave out different features"
    ):
        DifferenceTarget(nn.Linear(3, 3), nn.Sequential(nn.Linear(3, 3), nn.Dropout()))
    with pytest.raises(ConfigError, match="noise=-1: expected a share"):
        DifferenceTarget(nn.Linear(3, 3), nn.Linear(3, 3), noise=-1)
    with pytest.raises(ConfigError, match="step=0: expected a share"):
        DifferenceTarget(nn.Linear(3, 3), nn.Linear(3, 3), step=0)
