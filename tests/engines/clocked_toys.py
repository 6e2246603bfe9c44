"""Small nodes for clocked networks, rules that listen in, and an optimizer that waits for the end of a block."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from synthgrad.core import Credit, Info, Message, Rule
from synthgrad.engines.clocked import Edge

B, WIDTH, CLASSES = 4, 5, 3


class Cell(nn.Module):
    """A recurrent cell: ``h = tanh(Σ W_k in_k + U h)``; its outputs are a message and a report."""

    def __init__(self, *inputs: str, width: int = WIDTH) -> None:
        super().__init__()
        self.weights = nn.ModuleDict({name: nn.Linear(width, width) for name in inputs})
        self.again = nn.Linear(width, width)
        self.message = nn.Linear(width, width)
        self.report = nn.Linear(width, CLASSES)
        self.width = width

    def forward(self, inputs: dict[str, Tensor], state: Tensor | None) -> tuple[dict[str, Tensor], Tensor]:
        parts = [self.weights[name](value) for name, value in inputs.items()]
        z = torch.stack(parts).sum(0)
        h = torch.tanh(z if state is None else z + self.again(state))
        return {"message": torch.tanh(self.message(h)), "report": self.report(h)}, h


class Fused(nn.Module):
    """A fused LSTM of two layers, one step a tick; its state is the pair ``(layers, B, H)``."""

    def __init__(self, width: int = WIDTH) -> None:
        super().__init__()
        self.lstm = nn.LSTM(width, width, num_layers=2)
        self.report = nn.Linear(width, CLASSES)

    def forward(self, inputs: dict[str, Tensor], state: Any) -> tuple[dict[str, Tensor], Any]:
        x = torch.stack(list(inputs.values())).sum(0)
        h, state = self.lstm(x.unsqueeze(0), state)
        return {"message": h[0], "report": self.report(h[0])}, state


def made(*cells: nn.Module) -> list[nn.Module]:
    """Return modules in float64."""
    return [cell.double() for cell in cells]


def criterion(outputs: dict[str, Tensor], y: Tensor) -> Tensor:
    return F.cross_entropy(outputs["report"], y)


def edge(sender: str, receiver: str, rule: Rule, *, back: bool = False) -> Edge:
    initial = torch.zeros(WIDTH, dtype=torch.float64) if back else None
    return Edge(sender, receiver, rule, output="message", initial=initial)


def stream(
    steps: int, nodes: Sequence[str], targets: Mapping[str, int], seed: int = 0
) -> list[tuple[dict[str, Tensor], dict[str, Tensor]]]:
    """Return inputs for these nodes at every step, and targets for these at every so many steps."""
    generator = torch.Generator().manual_seed(seed)
    made: list[tuple[dict[str, Tensor], dict[str, Tensor]]] = []
    for step in range(steps):
        x = {n: torch.randn(B, WIDTH, generator=generator, dtype=torch.float64) for n in nodes}
        y = {
            n: torch.randint(0, CLASSES, (B,), generator=generator)
            for n, every in targets.items()
            if (step + 1) % every == 0
        }
        made.append((x, y))
    return made


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, 0.2, momentum=0.9)


class Blockwise(torch.optim.SGD):
    """Adds gradients up, and steps with their sum at every ``every``-th call: weights are constant in between."""

    def __init__(self, parameters: Any, every: int) -> None:
        super().__init__(parameters, 0.2, momentum=0.9)
        self.every, self.calls = every, 0
        self.sums: dict[Tensor, Tensor] = {}

    def step(self, closure: Any = None) -> None:
        parameters = [p for group in self.param_groups for p in group["params"]]
        for p in parameters:
            if p.grad is not None:
                self.sums[p] = self.sums.get(p, torch.zeros_like(p)) + p.grad
        self.calls += 1
        if self.calls % self.every == 0:
            for p in parameters:
                p.grad = self.sums.get(p)
            self.sums = {}
            super().step(closure)


class Told(Rule):
    """Gives the credit that a function of step and message says, and notes what is observed.

    Copies share their notes: ``heard[name]`` is a list of (step sent, message, info).
    """

    def __init__(self, credit: Any = None, heard: dict[str, list[tuple[Any, ...]]] | None = None) -> None:
        super().__init__()
        self._credit = credit
        self.heard: dict[str, list[tuple[Any, ...]]] = {} if heard is None else heard
        self.asked: dict[str, list[Info]] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> Told:
        twin = Told(self._credit, self.heard)
        twin.asked = self.asked
        return twin

    def credit(self, h: Tensor, info: Info) -> Credit:
        self.asked.setdefault(self.name, []).append(info)
        delta = None if self._credit is None else self._credit(self.name, info.step, h.detach())
        return Credit(delta)

    def observe(
        self, h: Tensor, info: Info, message: Message, pending: tuple[Tensor, ...] = ()
    ) -> Tensor | None:
        self.heard.setdefault(self.name, []).append((info.step, message.gradient.clone(), info))
        return None

    def messages(self, name: str) -> dict[int, Tensor]:
        return {step: gradient for step, gradient, _ in self.heard.get(name, [])}


def assert_same(ours: nn.Module, theirs: nn.Module, atol: float = 1e-12) -> None:
    expected = theirs.state_dict()
    for name, value in ours.state_dict().items():
        assert torch.allclose(value, expected[name], rtol=0, atol=atol), f"'{name}' differs"


def assert_gradients(ours: nn.Module, theirs: Mapping[str, Tensor | None]) -> None:
    for name, p in ours.named_parameters():
        expected = theirs[name]
        if expected is None:
            assert p.grad is None, f"'{name}' has a gradient"
        else:
            assert p.grad is not None, f"'{name}' has no gradient"
            assert torch.allclose(p.grad, expected, rtol=0, atol=1e-12), f"'{name}' differs"


class Keep(torch.optim.SGD):
    """Changes nothing, and keeps the gradients of every step: ``grads[k][name]``."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, 0.0)
        self.kept: list[list[Tensor | None]] = []

    def step(self, closure: Any = None) -> None:
        self.kept.append(
            [None if p.grad is None else p.grad.clone() for g in self.param_groups for p in g["params"]]
        )


def twins(*modules: nn.Module) -> list[nn.Module]:
    return [copy.deepcopy(m) for m in modules]
