"""Unchanged training loops of Lightning Fabric and Accelerate around a decoupled network."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import synthgrad as sg
from tests.networks import CASES, CLASSES


def network() -> sg.core.Decoupled:
    case = CASES["batchnorm"]
    example = case.batch(dtype=torch.float32)[0]
    return sg.decouple(case.model(torch.float32), case.at, sg.SyntheticGradient(context=CLASSES), example)


def loader() -> DataLoader[tuple[Tensor, ...]]:
    torch.manual_seed(3)
    x = torch.randn(96, 6)
    return DataLoader(TensorDataset(x, x[:, :CLASSES].argmax(1)), batch_size=32)


def by_hand(epochs: int) -> sg.core.Decoupled:
    net = network()
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(epochs):
        for x, y in loader():
            optimizer.zero_grad()
            F.cross_entropy(net(x, context=y), y).backward()
            optimizer.step()
    return net


def assert_same(net: torch.nn.Module, other: torch.nn.Module) -> None:
    theirs = other.state_dict()
    for name, value in net.state_dict().items():
        assert torch.allclose(value, theirs[name], atol=1e-6), f"'{name}' differs"


@pytest.mark.filterwarnings("ignore")  # their own deprecations are not ours
def test_lightning_fabric() -> None:
    fabric_package = pytest.importorskip("lightning_fabric", reason="needs lightning-fabric (extra: test)")
    fabric = fabric_package.Fabric(accelerator="cpu", devices=1)
    net = network()
    model, optimizer = fabric.setup(net, torch.optim.Adam(net.parameters(), 1e-2))
    data = fabric.setup_dataloaders(loader())
    for _ in range(3):
        for x, y in data:
            optimizer.zero_grad()
            fabric.backward(F.cross_entropy(model(x, context=y), y))
            optimizer.step()
    assert_same(net, by_hand(3))


@pytest.fixture
def accelerator() -> Iterator[object]:
    package = pytest.importorskip("accelerate", reason="needs accelerate (extra: test)")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("ACCELERATE_USE_CPU", "ACCELERATE_MIXED_PRECISION"):
            patch.delenv(name, raising=False)
        yield package.Accelerator(cpu=True)


@pytest.mark.filterwarnings("ignore")
def test_accelerate(accelerator: object) -> None:
    net = network()
    made = torch.optim.Adam(net.parameters(), 1e-2)
    model, optimizer, data = accelerator.prepare(net, made, loader())  # type: ignore[attr-defined]
    for _ in range(3):
        for x, y in data:
            optimizer.zero_grad()
            accelerator.backward(F.cross_entropy(model(x, context=y), y))  # type: ignore[attr-defined]
            optimizer.step()
    assert_same(net, by_hand(3))


@pytest.mark.compiles
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # the compiler uses what torch deprecates
def test_inductor_compiles_the_whole_step_without_a_break() -> None:
    import shutil

    if shutil.which("g++") is None and shutil.which("clang++") is None:
        pytest.skip("needs a C++ compiler for torch.compile on a CPU")
    net, eager = network(), network()
    compiled = torch.compile(net, fullgraph=True)
    optimizers = [torch.optim.SGD(n.parameters(), 0.1) for n in (net, eager)]
    for x, y in list(loader()) * 2:
        for run, optimizer in zip((compiled, eager), optimizers, strict=True):
            optimizer.zero_grad()
            F.cross_entropy(run(x, context=y), y).backward()
            optimizer.step()
    theirs = eager.state_dict()
    for name, value in net.state_dict().items():
        assert torch.allclose(value, theirs[name], atol=1e-4), f"'{name}' differs"
