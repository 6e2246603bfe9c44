"""A chain of modules trained without an engine: what engines are held to, written out in float64.

Two modules and one interface would do for a rule; a chain also shows what a message is made of that a module sends
which has itself learned from a rule's credit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

import synthgrad as sg
from synthgrad.core import Credit, Decoupled, Info, Message, Rule
from synthgrad.engines import Lag
from tests.networks import CLASSES

__all__ = ["ByHand", "assert_same", "batches", "chain", "losses", "plain_loop", "run", "sgd"]

B = 6


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, 0.03, momentum=0.5)


def losses(output: Tensor, y: Tensor) -> Tensor:
    """Return the loss of each example, which rules that predict loss values learn from."""
    return F.cross_entropy(output, y, reduction="none")


def chain(rule: Rule | Mapping[str, Rule], modules: int = 4) -> Decoupled:
    """Return a chain of small modules, cut after each but the last."""
    torch.manual_seed(1)
    widths = [6, *[7] * (modules - 1)]
    blocks = [nn.Sequential(nn.Linear(a, 7), nn.Tanh(), nn.Linear(7, 7), nn.Tanh()) for a in widths[:-1]]
    model = nn.Sequential(*blocks, nn.Linear(7, CLASSES)).double()
    net = sg.decouple(model, list(map(str, range(modules - 1))), rule, batches(1)[0][0])
    for p in net.rules.parameters():  # a prediction of zero would hide what is made of it
        nn.init.normal_(p, std=0.05)
    return net.train()


def batches(number: int) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Return inputs, labels and ids; ids come again after two batches, as in a next epoch."""
    generator = torch.Generator().manual_seed(3)
    return [
        (
            torch.randn(B, 6, generator=generator, dtype=torch.float64),
            torch.randint(0, CLASSES, (B,), generator=generator),
            torch.arange(B) + B * (k % 2),
        )
        for k in range(number)
    ]


def run(engine: Any, number: int) -> Any:
    """Train for so many steps, and return the engine."""
    for x, y, ids in batches(number):
        engine.step(x, y, ids=ids)
    return engine


def assert_same(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        assert torch.allclose(ours[name], value, rtol=1e-10, atol=1e-12), f"'{name}' differs"


@dataclass(eq=False)
class Crossing:
    """A batch that has crossed an interface.

    Attributes:
        info, target, h: what it is, and what crossed.
        credit: what the rule has answered.
        below: the crossing that fed the module below; None at the bottom.
        out: what that module has made, with its graph, where it waits.
        leaf: what the module above was fed with.
        message: what came back.
        crossed, due: the steps in which it crossed, and in which its message is to be observed.
    """

    info: Info
    target: Tensor
    h: Tensor
    crossed: int
    credit: Credit
    below: Crossing | None
    out: Tensor | None = None
    leaf: Tensor | None = None
    message: Message | None = None
    due: int = 0


class ByHand:
    """Trains a decoupled chain: module ``k`` on the batch of some steps ago, rules by messages that are later still.

    Args:
        net: a chain; it is trained in place.
        lags: of the interfaces, from the bottom.
        criterion: returns the loss of each example.
        optimizer: of each module, and of each rule.
    """

    def __init__(
        self,
        net: Decoupled,
        lags: Sequence[Lag],
        criterion: Callable[[Tensor, Tensor], Tensor] = losses,
        optimizer: Callable[[Any], torch.optim.Optimizer] = sgd,
    ) -> None:
        self.modules = list(net.model.children())
        self.rules = [interface.rule for interface in net.interfaces.values()]
        self.lags = lags
        self.criterion = criterion
        self.optimizers = [optimizer(m.parameters()) for m in self.modules]
        self.teachers = [optimizer(p) if (p := list(rule.parameters())) else None for rule in self.rules]
        self.up: list[list[Crossing]] = [[] for _ in self.rules]
        self.down: list[list[Crossing]] = [[] for _ in self.rules]
        self.now = -1

    def step(self, x: Tensor, y: Tensor, *, ids: Tensor) -> None:
        self.now += 1
        info, fed, below = Info(y, ids, self.now, x), x, None
        for k, module in enumerate(self.modules):
            if k:
                queue = self.up[k - 1]
                if len(queue) <= self.lags[k - 1].forward:
                    return
                below = queue.pop(0)
                info, y = below.info, below.target
                fed = below.leaf = below.h.clone().requires_grad_()
            # Copies of the weights: a graph that is kept for a while belongs to the weights of then.
            out = functional_call(module, {n: p.clone() for n, p in module.named_parameters()}, (fed,))
            if k == len(self.rules):
                found = self.criterion(out, y)
                self.learn(k, found, torch.full_like(found, 1 / B), below, found.detach())
                return
            credit = self.rules[k].credit(out.detach(), info)
            self.teach(k, credit.loss)
            crossing = Crossing(info, y, out.detach(), self.now, credit, below, out)
            waits = credit.wait or credit.delta is None
            self.learn(k, out, None if waits else credit.delta / B, below, credit.value)  # type: ignore[operator]
            self.up[k].append(crossing)

    def learn(
        self, k: int, out: Tensor, grad: Tensor | None, below: Crossing | None, values: Tensor | None
    ) -> None:
        """Update module ``k`` and the rule below it, which listens to what this module sends."""
        if grad is not None:
            out.backward(grad)
        due: list[Crossing] = []
        if below is not None:
            if grad is not None:
                assert below.leaf is not None
                assert below.leaf.grad is not None
                below.message = Message(below.leaf.grad * B, values)
                below.due = self.now + self.lags[k - 1].observe
                self.down[k - 1].append(below)
            due = [c for c in self.down[k - 1] if c.due <= self.now]
            self.down[k - 1] = [c for c in self.down[k - 1] if c.due > self.now]
            self.teach(k - 1, *(self.observe(k - 1, c) for c in due))
        self.optimizers[k].step()
        self.optimizers[k].zero_grad()
        for c in due:
            if c.credit.wait:
                assert c.message is not None
                assert c.out is not None
                came = self.rules[k - 1].accept(c.message, c.info)
                known = c.credit.value if c.message.loss is None else c.message.loss
                self.learn(k - 1, c.out, came / B, c.below, known)

    def observe(self, k: int, c: Crossing) -> Tensor | None:
        """Ask a rule what it learns from a message: by a prediction anew if it has changed since it gave credit."""
        assert c.message is not None
        if not self.rules[k].listens:
            return None
        kept = c.credit.pending if c.crossed == self.now else ()
        return self.rules[k].observe(c.h, c.info, c.message, kept)

    def teach(self, k: int, *found: Tensor | None) -> None:
        """Let a rule learn from its losses, in one step."""
        wanted = [loss for loss in found if loss is not None and loss.requires_grad]
        optimizer = self.teachers[k]
        if optimizer is not None and wanted:
            optimizer.zero_grad()
            torch.stack(wanted).sum().backward()
            optimizer.step()


def plain_loop(net: Decoupled, number: int) -> None:
    """Train a decoupled chain in lock step: forward through all, backward through all, one update at the end."""
    optimizer = sgd([*net.model.parameters(), *net.rules.parameters()])
    modules, rules = list(net.model.children()), [i.rule for i in net.interfaces.values()]
    for t, (x, y, ids) in enumerate(batches(number)):
        info, fed = Info(y, ids, t, x), [x]
        outs: list[Tensor] = []
        credits: list[Credit] = []
        optimizer.zero_grad()
        for module, rule in zip(modules, rules, strict=False):
            outs.append(module(fed[-1]))
            credits.append(rule.credit(outs[-1].detach(), info))
            fed.append(outs[-1].detach().requires_grad_())
        losses(modules[-1](fed[-1]), y).mean().backward()
        for k in reversed(range(len(rules))):
            leaf = fed[k + 1]
            # Nothing comes back from a module that has not learned: the plain loop sends zeros then.
            message = Message(torch.zeros_like(leaf) if leaf.grad is None else leaf.grad * B)
            credit = credits[k]
            found = [credit.loss]
            if rules[k].listens:
                found.append(rules[k].observe(leaf.detach(), info, message, credit.pending))
            for loss in found:
                if loss is not None and loss.requires_grad:
                    loss.backward()
            delta = rules[k].accept(message, info) if credit.wait else credit.delta
            if delta is not None:
                outs[k].backward(delta / B)
        optimizer.step()
