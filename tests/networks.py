"""Small networks of every shape that a cut can meet, with cuts and batches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from synthgrad.core import Credit, Info, Rule, Site

CLASSES = 5


@dataclass(frozen=True)
class Case:
    """A network, where to cut it, its criterion, and the shape of an example."""

    name: str
    make: Callable[[], nn.Module]
    at: tuple[str, ...]
    shape: tuple[int, ...]
    criterion: Callable[[Any, Any], Tensor] = F.cross_entropy

    def __str__(self) -> str:  # in names of tests, which have to be the same in every process
        return self.name

    def batch(
        self, size: int = 8, seed: int = 0, dtype: torch.dtype = torch.float64
    ) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(size, *self.shape, generator=generator, dtype=torch.float64).to(dtype)
        return x, torch.randint(0, CLASSES, (size,), generator=generator)

    def batches(self, number: int, dtype: torch.dtype = torch.float64) -> list[tuple[Tensor, Tensor]]:
        return [self.batch(seed=k, dtype=dtype) for k in range(number)]

    def model(self, dtype: torch.dtype = torch.float64) -> nn.Module:
        torch.manual_seed(1)
        return self.make().to(dtype)


def linear_stack() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 7), nn.Tanh(), nn.Linear(7, 7), nn.Tanh(), nn.Linear(7, CLASSES))


def block(a: int, b: int) -> nn.Module:
    return nn.Sequential(nn.Linear(a, b), nn.BatchNorm1d(b), nn.ReLU())


def normed() -> nn.Module:
    return nn.Sequential(block(6, 8), block(8, 8), block(8, 8), nn.Linear(8, CLASSES))


def convolutional() -> nn.Module:
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU()),
        nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2)),
        nn.Sequential(nn.Flatten(), nn.Linear(36, CLASSES)),
    )


class Residual(nn.Module):
    """Two residual blocks whose skip connections lie within one module each; ReLU in place above a cut."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(6, 8)
        self.one = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8))
        self.join_one = nn.Identity()
        self.two = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8))
        self.join_two = nn.Identity()
        self.head = nn.Sequential(nn.ReLU(inplace=True), nn.Linear(8, CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = self.join_one(x + self.one(x))
        x = self.join_two(x + self.two(x))
        return self.head(x)


class TwoHeaded(nn.Module):
    """A trunk that feeds two heads; one of them is cut inside, so the trunk's message has two parts."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(6, 8), nn.Tanh())
        self.inner = nn.Sequential(nn.Linear(8, 8), nn.Tanh())
        self.first = nn.Linear(8, CLASSES)
        self.second = nn.Linear(8, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.trunk(x)
        return self.first(self.inner(h)), self.second(h)


def two_losses(output: tuple[Tensor, Tensor], y: Tensor) -> Tensor:
    return F.cross_entropy(output[0], y) + (output[1].squeeze(1) - y.to(output[1].dtype)).square().mean()


class SharedTrunk(nn.Module):
    """Two branches, each cut at its end, over an uncut trunk: trunk and branches learn as one module."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Linear(6, 8)
        self.left = nn.Sequential(nn.Linear(8, 8), nn.Tanh())
        self.right = nn.Sequential(nn.Linear(8, 8), nn.Tanh())
        self.head = nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        h = self.trunk(x).tanh()
        return self.head(torch.cat([self.left(h), self.right(h)], 1))


class Local(Rule):
    """A rule that learns from its own loss, and from nothing above."""

    listens = False

    def build(self, site: Site) -> None:
        self.head = nn.Linear(site.shape[1], CLASSES)

    def credit(self, h: Tensor, info: Info) -> Credit:
        with torch.enable_grad():
            leaf = h.detach().requires_grad_()
            loss = F.cross_entropy(self.head(leaf), info.context)  # type: ignore[arg-type]
            (delta,) = torch.autograd.grad(loss, leaf, retain_graph=True)
        return Credit(delta * len(h), loss=loss)


CASES = {
    c.name: c
    for c in (
        Case("linear", linear_stack, ("1", "3"), (6,)),
        Case("batchnorm", normed, ("0", "1", "2"), (6,)),
        Case("conv", convolutional, ("0", "1"), (2, 6, 6)),
        Case("residual", Residual, ("stem", "join_one", "join_two"), (6,)),
        Case("two_headed", TwoHeaded, ("trunk", "inner"), (6,), two_losses),
        Case("shared_trunk", SharedTrunk, ("left", "right"), (6,)),
        Case(
            "nested",
            lambda: nn.Sequential(linear_stack(), nn.Tanh(), nn.Linear(CLASSES, CLASSES)),
            ("0.1", "0.3", "1"),
            (6,),
        ),
    )
}
