"""Taking a network apart: a Sequential as it is, anything else by torch.export."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from synthgrad import SyntheticGradient, decouple
from synthgrad.core import ConfigError, Decoupled
from synthgrad.engines.stages.split import check_predictable, parts


class Residual(nn.Module):
    """No Sequential: its forward says what runs."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Linear(6, 8), nn.BatchNorm1d(8)
        self.inner, self.head = nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.norm(self.stem(x)))
        return self.head(torch.tanh(self.inner(h) + h))


class Undecided(nn.Module):
    """Its control flow depends on values, which torch.export refuses."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(6, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        return self.head(h if h.sum() > 0 else -h)


def net_of(model: nn.Module, cuts: list[str]) -> tuple[Decoupled, Tensor]:
    x = torch.randn(10, 6)
    return decouple(model, cuts, SyntheticGradient(), x), x


def run(modules: list[nn.Module], x: Tensor) -> Tensor:
    for module in modules:
        x = module(x)
    return x


def test_a_sequential_is_taken_apart_as_it_is() -> None:
    model = nn.Sequential(nn.Sequential(nn.Linear(6, 8), nn.ReLU()), nn.Linear(8, 8), nn.Linear(8, 4))
    net, x = net_of(model, ["0", "1"])
    modules = parts(net, None)
    assert len(modules) == 3
    torch.testing.assert_close(run(modules, x), net.eval()(x), rtol=0, atol=0)


@pytest.mark.parametrize("cut", ["stem", "norm"])
def test_torch_export_splits_what_is_no_sequential(cut: str) -> None:
    net, x = net_of(Residual(), [cut])
    modules = parts(net, (x,))
    assert len(modules) == 2
    own = dict(net.model.named_parameters())
    found = [(name, p) for module in modules for name, p in module.named_parameters()]
    assert {name for name, _ in found} == set(own)
    assert all(p is own[name] for name, p in found), "the network's own parameters are trained"
    torch.testing.assert_close(run(modules, x[:3]), copy.deepcopy(net.model)(x[:3]))  # of another batch size
    with pytest.raises(ConfigError, match=r"'norm' is a BatchNorm1d.*call gather"):
        check_predictable(modules[0], net)


def test_statistics_are_those_of_the_network() -> None:
    net, x = net_of(Residual(), ["norm"])
    before = net.model.norm.running_mean.clone()  # pyright: ignore
    parts(net, (x,))[0](x)
    assert not torch.equal(net.model.norm.running_mean, before)  # pyright: ignore


def test_without_an_example_it_asks_for_one() -> None:
    with pytest.raises(ConfigError, match="give an example batch to the engine"):
        parts(net_of(Residual(), ["norm"])[0], None)


def test_what_torch_export_refuses_is_refused_in_a_line() -> None:
    net, x = net_of(Undecided(), ["stem"])
    with pytest.raises(ConfigError, match="torch.export cannot split it") as caught:
        parts(net, (x,))
    assert "\n" not in str(caught.value)


def test_branches_are_refused() -> None:
    class TwoHeads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 4), nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            h = self.stem(x)
            return self.a(h) + self.b(h)

    net, x = net_of(TwoHeads(), ["stem", "a"])
    with pytest.raises(ConfigError, match="no chain"):
        parts(net, (x,))
