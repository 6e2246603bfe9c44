"""Every rule between unrolls, and between networks of different rates, against a loop written out by hand.

A rule that cannot be there is refused with the reason.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from synthgrad.core import ConfigError, ContextError, Credit, Info, Message, Rule
from synthgrad.engines import Boundary, Recurrent
from synthgrad.engines.clocked import Clocked, Edge, Node
from synthgrad.rules import StaleGradient, TrueGradient
from tests.engines.by_hand import B, assert_same, batches, sgd
from tests.engines.clocked_toys import WIDTH, Cell, criterion
from tests.engines.rule_registry import ONE_BACKWARD as RULES
from tests.networks import CLASSES

ALPHA, T, STEPS = 0.5, 3, 8
every_rule = pytest.mark.parametrize("rule", RULES)


def stirred(module: nn.Module) -> None:
    """Give parameters values of their own: a prediction of zero would hide what is made of it."""
    for p in module.parameters():
        nn.init.normal_(p, std=0.3)


def teacher(rule: Rule) -> torch.optim.Optimizer | None:
    return sgd(p) if (p := list(rule.parameters())) else None


def step(optimizer: torch.optim.Optimizer | None) -> None:
    if optimizer is not None:
        optimizer.step()
        optimizer.zero_grad()


def learn(found: Tensor | None) -> None:
    if found is not None and found.requires_grad:
        found.backward()


def assert_rule_learned(ours: nn.Module, start: nn.Module) -> None:
    before = start.state_dict()
    assert not before or any(not torch.equal(before[n], t) for n, t in ours.state_dict().items())


# Between unrolls


class Network(nn.Module):
    """A recurrent network whose state is a tensor ``(B, H)``."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.GRUCell(2, 5), nn.Linear(5, CLASSES)

    def initial_state(self, batch_size: int, device: Any, dtype: torch.dtype) -> Tensor:
        return torch.zeros(batch_size, 5, device=device, dtype=dtype)

    def forward(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        out: list[Tensor] = []
        for now in x.unbind(1):
            state = self.cell(now, state)
            out.append(self.head(state))
        return torch.stack(out, 1), state


def summed(scores: Tensor, y: Tensor) -> Tensor:
    """Sum over the steps of an unroll, mean over sequences."""
    return F.cross_entropy(scores.flatten(0, 1), y.flatten(), reduction="sum") / len(y)


def unrolls() -> list[tuple[Tensor, Tensor, Tensor]]:
    """Return inputs, targets of each step, and a label of each sequence."""
    generator = torch.Generator().manual_seed(5)
    return [
        (
            torch.randn(B, T, 2, generator=generator, dtype=torch.float64),
            torch.randint(CLASSES, (B, T), generator=generator),
            torch.randint(CLASSES, (B,), generator=generator),
        )
        for _ in range(STEPS)
    ]


def unrolls_by_hand(net: Network, rule: Rule) -> None:
    """Truncated BPTT: the end of an unroll gets ``α · δ̂``, and its start tells the rule what came back there."""
    optimizer, taught = sgd(net.parameters()), teacher(rule)
    state, known = net.initial_state(B, None, torch.float64), None
    for k, (x, y, c) in enumerate(unrolls()):
        start, before = state.detach().requires_grad_(), Info(known, step=k)
        # An initial state gets no credit from anywhere, so nothing is learned of it.
        asked = rule.credit(start.detach(), before) if k and rule.listens else None
        scores, state = net(x, start)
        credit = rule.credit(state.detach(), Info(c, step=k))
        total = summed(scores, y)
        if credit.delta is not None:
            total = total + (state * credit.delta).sum() * (ALPHA / B)
        total.backward()
        learn(credit.loss)
        if asked is not None:
            assert start.grad is not None
            learn(rule.observe(start.detach(), before, Message(start.grad * B), asked.pending))
        step(optimizer)
        step(taught)
        known = c


@every_rule
def test_between_unrolls(rule: str) -> None:
    torch.manual_seed(0)
    net = Network().double()
    state = net.initial_state(B, None, torch.float64)
    if RULES[rule]().waits:
        with pytest.raises(ConfigError, match="wait for its true message, .* make unrolls longer") as refused:
            Boundary(RULES[rule](), state, alpha=ALPHA)
        assert "\n" not in str(refused.value)
        return
    boundary = Boundary(RULES[rule](), state, alpha=ALPHA)
    stirred(boundary)
    twin, other, start = copy.deepcopy(net), copy.deepcopy(boundary.rule), copy.deepcopy(boundary.rule)
    engine = Recurrent(net, boundary, summed, sgd)
    if isinstance(boundary.rule, StaleGradient):
        x, y, c = unrolls()[0]
        with pytest.raises(
            ContextError, match="interface 'state': its rule remembers examples and got no ids"
        ):
            engine.step(x, y, context=c)
        return
    for x, y, c in unrolls():
        engine.step(x, y, context=c)
    unrolls_by_hand(twin, other)
    assert_same(net.state_dict(), twin.state_dict())
    assert_same(boundary.rule.state_dict(), other.state_dict())
    assert_rule_learned(boundary.rule, start)


# Between networks of different rates


def data() -> list[tuple[Tensor, Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(6)
    return [
        (torch.randn(B, WIDTH, generator=generator, dtype=torch.float64), y % 3, ids)
        for _, y, ids in batches(18)
    ]


@dataclass(eq=False)
class Sent:
    """A message between networks: what was asked of the rule, and how often what came back has been added up."""

    leaf: Tensor
    info: Info
    credit: Credit
    lessons: int
    reads: int = 0


def clocks_by_hand(slow: nn.Module, fast: nn.Module, rule: Rule, period: int, unroll: int) -> None:
    """One network sends every ``period`` steps; the other reads its latest message in every step, and learns less often.

    The rule hears of a message when all that came back for it has been added up. By then others may have taught it:
    it predicts anew, unless it is as it was.
    """
    optimizers, taught = (sgd(slow.parameters()), sgd(fast.parameters())), teacher(rule)
    state_s = state_f = None
    read: list[Sent] = []
    latest: Sent | None = None
    loss, lessons = torch.zeros((), dtype=torch.float64), 0
    for t, (x, y, ids) in enumerate(data()):
        if (t + 1) % period == 0:
            out, state_s = slow({"input": x}, state_s)
            h, state_s = out["message"], state_s.detach()
            info = Info(y, ids, t, x)
            latest = Sent(h.detach().requires_grad_(), info, rule.credit(h.detach(), info), lessons)
            learn(latest.credit.loss)
            if latest.credit.delta is not None:
                h.backward(latest.credit.delta / B)
            step(optimizers[0])
            if not rule.learns_from_messages:
                step(taught)
        nothing = torch.zeros(B, WIDTH, dtype=torch.float64)
        out, state_f = fast({"slow": nothing if latest is None else latest.leaf}, state_f)
        loss = loss + criterion(out, y)
        read += [] if latest is None else [latest]
        if (t + 1) % unroll:
            continue
        loss.backward()
        loss, state_f = torch.zeros((), dtype=torch.float64), state_f.detach()
        for sent in read:
            sent.reads += 1
        for sent in [s for s in dict.fromkeys(read) if s.reads == period] if rule.listens else []:
            assert sent.leaf.grad is not None
            same = (
                sent.lessons == lessons and not rule.learns_at_once
            )  # which has learned when it gave credit
            pending = sent.credit.pending if same else ()
            learn(rule.observe(sent.leaf.detach(), sent.info, Message(sent.leaf.grad * B), pending))
        read, lessons = [], lessons + 1
        step(optimizers[1])
        if rule.learns_from_messages:
            step(taught)


def locked_by_hand(slow: nn.Module, fast: nn.Module, rule: Rule, period: int, unroll: int) -> None:
    """Both learn together, as often as both have ended an unroll, from all that has been since."""
    optimizer = sgd([*slow.parameters(), *fast.parameters()])
    state_s = state_f = None
    leaf, loss = torch.zeros(B, WIDTH, dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    sent: list[tuple[Tensor, Tensor, Info]] = []
    for t, (x, y, ids) in enumerate(data()):
        if (t + 1) % period == 0:
            out, state_s = slow({"input": x}, state_s)
            h = out["message"]
            leaf = h.detach().requires_grad_()
            sent.append((h, leaf, Info(y, ids, t, x)))
        out, state_f = fast({"slow": leaf}, state_f)
        loss = loss + criterion(out, y)
        if (t + 1) % math.lcm(period, unroll) == 0:
            loss.backward()
            came = [
                rule.accept(Message(leaf.grad * B), info) / B
                for _, leaf, info in sent
                if leaf.grad is not None
            ]
            torch.autograd.backward([h for h, *_ in sent], came)
            step(optimizer)
            sent, leaf, loss = [], leaf.detach(), torch.zeros((), dtype=torch.float64)
            assert state_s is not None
            state_s, state_f = state_s.detach(), state_f.detach()


@every_rule
@pytest.mark.parametrize(("period", "unroll"), [(1, 1), (2, 1), (3, 5)])
def test_between_clocks(rule: str, period: int, unroll: int) -> None:
    torch.manual_seed(0)
    slow, fast = Cell("input").double(), Cell("slow").double()
    x = {"slow": data()[0][0]}
    nodes = [Node("slow", slow, period), Node("fast", fast, 1, unroll)]
    build = lambda: Clocked(  # noqa: E731
        nodes, [Edge("slow", "fast", RULES[rule](), "message")], {"fast": criterion}, sgd, example=x
    )
    if RULES[rule]().waits and not isinstance(RULES[rule](), TrueGradient):
        with pytest.raises(ConfigError, match="edge 'slow->fast': a HandOver decides with every message"):
            build()
        return
    engine = build()
    ours = engine.net.rule("slow->fast")
    stirred(ours)
    theirs = copy.deepcopy((slow, fast, ours))
    start = copy.deepcopy(ours)
    for x_now, y, ids in data():
        engine.step({"slow": x_now}, {"fast": y}, context=y, ids=ids)
    if ours.waits:
        locked_by_hand(*theirs, period, unroll)
    else:
        clocks_by_hand(*theirs, period, unroll)
    assert_same(slow.state_dict(), theirs[0].state_dict())
    assert_same(fast.state_dict(), theirs[1].state_dict())
    assert_same(ours.state_dict(), theirs[2].state_dict())
    assert_rule_learned(ours, start)
