"""A small GPT, batches with ragged labels, and a rule that listens: for the units of tokens in every engine."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import synthgrad as sg
from synthgrad.core import Credit, Decoupled, Info, Message, Rule
from synthgrad.lab.tasks.gpt import gpt

B, T, V = 4, 6, 11
CUTS = ("block1", "block2", "block3")
NONE = -100


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return gpt(V, width=8, blocks=4, heads=2, context=T).double()


def batches(number: int, seed: int = 1) -> list[tuple[Tensor, Tensor]]:
    """Return ids and labels: every example has another number of labels, and one has none."""
    generator = torch.Generator().manual_seed(seed)
    found: list[tuple[Tensor, Tensor]] = []
    for _ in range(number):
        ids = torch.randint(V, (B, T + 1), generator=generator)
        x, y = ids[:, :-1].contiguous(), ids[:, 1:].clone()
        for row, length in enumerate(torch.randint(1, T + 1, (B,), generator=generator).tolist()):
            y[row, length:] = NONE
        y[2] = NONE
        found.append((x, y))
    return found


def over_tokens(scores: Tensor, y: Tensor) -> Tensor:
    """Return the mean over all labels of the batch."""
    return F.cross_entropy(scores.flatten(0, 1), y.flatten())


def by_example(scores: Tensor, y: Tensor) -> Tensor:
    """Return the mean over the labels of each example, ``(B,)``."""
    each = F.cross_entropy(scores.transpose(1, 2), y, reduction="none")
    return each.sum(1) / (y != NONE).sum(1).clamp(min=1)


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, 0.3, momentum=0.9)


def still(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, 0.0)


def decoupled(rule: Rule, at: tuple[str, ...] = CUTS, **settings: Any) -> Decoupled:
    settings = {"reduction": "tokens", **settings}
    return sg.decouple(model(), at, rule, batches(1)[0][0], **settings)


def backprop(steps: int) -> list[dict[str, Tensor]]:
    """Return the weights at the start, and after each step of plain training."""
    net = model()
    optimizer = sgd(net.parameters())
    found = [{n: p.detach().clone() for n, p in net.named_parameters()}]
    for x, y in batches(steps):
        optimizer.zero_grad()
        over_tokens(net(x), y).backward()
        optimizer.step()
        found.append({n: p.detach().clone() for n, p in net.named_parameters()})
    return found


def assert_weights(net: nn.Module, expected: dict[str, Tensor], prefix: str = "") -> None:
    """Compare all weights of a network whose names begin in a certain way, and see that they have learned."""
    start = dict(model().named_parameters())
    names = [n for n in expected if n.startswith(prefix)]
    assert names
    for name in names:
        p = net.get_parameter(name)
        torch.testing.assert_close(
            p, expected[name], rtol=1e-9, atol=1e-11, msg=lambda m, n=name: f"{n}: {m}"
        )
        assert not torch.equal(p, start[name]), f"'{name}' has not learned"


class Heard(Rule):
    """Gives a tenth of ``h`` as credit, and keeps the messages that come, by step."""

    def __init__(self) -> None:
        super().__init__()
        self.messages: dict[int, Tensor] = {}
        self.losses: dict[int, Tensor | None] = {}

    def credit(self, h: Tensor, info: Info) -> Credit:
        return Credit(h.detach() / 10)

    def observe(self, h: Tensor, info: Info, message: Message, pending: tuple[Tensor, ...] = ()) -> None:
        assert info.step is not None
        self.messages[info.step] = message.gradient.clone()
        self.losses[info.step] = None if message.loss is None else message.loss.clone()


def parts(net: nn.Module) -> list[nn.Sequential]:
    """Return the modules between the cuts."""
    layers = dict(net.named_children())
    return [
        nn.Sequential(layers["embedding"], layers["block1"]),
        nn.Sequential(layers["block2"]),
        nn.Sequential(layers["block3"]),
        nn.Sequential(layers["block4"], layers["output"]),
    ]


def by_hand(x: Tensor, y: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Return what the rules hear and what they give, `Heard` at every cut, with weights as at the start.

    A message is the gradient of the mean over the labels of each example: of the criterion below the output, and of what
    the rule above has given elsewhere. It is zero for an example without any label.
    """
    h: Tensor = x
    crossed: list[Tensor] = []
    chain = parts(model())
    for part in chain[:-1]:
        h = part(h).detach()
        crossed.append(h)
    messages: list[Tensor] = []
    counts = (y != NONE).any(1).view(B, 1, 1)
    for k, part in enumerate(chain[1:]):
        leaf = crossed[k].clone().requires_grad_()
        out = part(leaf)
        if k + 1 < len(crossed):
            out.backward(crossed[k + 1] / 10)
        else:
            by_example(out, y).sum().backward()
        assert leaf.grad is not None
        messages.append(leaf.grad * counts)
    return messages, [h / 10 for h in crossed]


def assert_heard(net: Decoupled, steps: int) -> None:
    """See that the rules of a network have heard the messages that `by_hand` says, in the steps up to a number."""
    for step, (x, y) in enumerate(batches(steps)):
        for name, expected in zip(CUTS, by_hand(x, y)[0], strict=True):
            rule: Any = net.interfaces[name].rule
            if step in rule.messages:
                torch.testing.assert_close(rule.messages[step], expected, rtol=1e-10, atol=1e-13)


def assert_measured(collected: dict[str, sg.core.Quality], steps: int, names: tuple[str, ...] = CUTS) -> None:
    """See that a monitor has measured what `by_hand` says: examples without labels do not count."""
    for name in names:
        at = CUTS.index(name)
        cosines: list[float] = []
        for x, y in batches(steps):
            messages, credits = by_hand(x, y)
            counts = (y != NONE).any(1).view(B, 1, 1)
            cosines.append(sg.core.quality(credits[at] * counts, messages[at]).cosine)
        assert abs(collected[name].cosine - sum(cosines) / steps) < 1e-6, name
