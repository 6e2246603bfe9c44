"""Networks that branch, in process, against the same thing written out by hand: who learns with whom, and from what.

A rule whose interface feeds several modules has its message when the last of them has learned, and learns with that
one. The loss of an example belongs to a message that alone has led to it, which none has where modules branch.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import synthgrad as sg
from synthgrad.core import Credit, Decoupled, Info, Message, Rule
from synthgrad.engines import InProcess, Locked
from tests.engines.by_hand import B, assert_same, batches, losses, sgd
from tests.engines.rule_registry import RULES
from tests.networks import CLASSES, TwoHeaded

STEPS = 8
# Corrections through branches are in test_accumulate.py.
LISTENING = [
    n for n, make in RULES.items() if make().learns_from_messages and not (make().waits or make().corrects)
]


class Forked(nn.Module):
    """A stem, cut at its end, that feeds a module which ends in two cuts."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Linear(6, 8), nn.Tanh())
        self.trunk = nn.Linear(8, 8)
        self.left = nn.Sequential(nn.Linear(8, 7), nn.Tanh())
        self.right = nn.Sequential(nn.Linear(8, 7), nn.Tanh())
        self.head = nn.Linear(14, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        h = self.trunk(self.stem(x)).tanh()
        return self.head(torch.cat([self.left(h), self.right(h)], 1))


def two_losses(output: tuple[Tensor, Tensor], y: Tensor) -> Tensor:
    return losses(output[0], y) + (output[1].squeeze(1) - y).square()


class Fork:
    """What both loops by hand need: an optimizer for each group of modules and rules, and a step for each."""

    def __init__(self, net: Decoupled, *groups: tuple[str, ...]) -> None:
        self.net = net
        self.parts: dict[str, nn.Module] = {
            **dict(net.model.named_children()),
            **{f"rule of {name}": interface.rule for name, interface in net.interfaces.items()},
        }
        self.optimizers = {
            names[0]: sgd([p for name in names for p in self.parts[name].parameters()]) for names in groups
        }

    def rule(self, name: str) -> Rule:
        return self.net.interfaces[name].rule

    def step(self, name: str) -> None:
        self.optimizers[name].step()
        self.optimizers[name].zero_grad()

    def teach(self, name: str, leaf: Tensor, info: Info, credit: Credit, values: Tensor | None) -> None:
        assert leaf.grad is not None
        message = Message(leaf.grad * B, values)
        found = self.rule(name).observe(leaf.detach(), info, message, credit.pending)
        if found is not None and found.requires_grad:
            found.backward()


def leaf_of(h: Tensor) -> Tensor:
    return h.detach().requires_grad_()


def two_headed_by_hand(net: Decoupled) -> None:
    """The trunk feeds ``inner`` and the heads: its rule learns with the heads, from a message without loss values."""
    model: Any = net.model
    heads = ("first", "second", "rule of trunk", "rule of inner")
    fork = Fork(net, ("trunk",), ("inner",), heads)
    for t, (x, y, ids) in enumerate(batches(STEPS)):
        info = Info(y, ids, t, x)
        h = model.trunk(x)
        of_trunk = fork.rule("trunk").credit(h.detach(), info)
        h.backward(of_trunk.delta / B)
        fork.step("trunk")
        leaf = leaf_of(h)
        inner = model.inner(leaf)
        of_inner = fork.rule("inner").credit(inner.detach(), info)
        inner.backward(of_inner.delta / B)  # a part of the trunk's message
        fork.step("inner")
        inner_leaf = leaf_of(inner)
        found = two_losses((model.first(inner_leaf), model.second(leaf)), y)
        found.mean().backward()
        fork.teach("inner", inner_leaf, info, of_inner, found.detach())
        fork.teach("trunk", leaf, info, of_trunk, None)
        fork.step("first")


def forked_by_hand(net: Decoupled) -> None:
    """Trunk and both branches learn as one: their message is for no loss value that one of the rules expects."""
    model: Any = net.model
    middle = ("trunk", "left", "right", "rule of stem")
    fork = Fork(net, ("stem",), middle, ("head", "rule of left", "rule of right"))
    for t, (x, y, ids) in enumerate(batches(STEPS)):
        info = Info(y, ids, t, x)
        h = model.stem(x)
        of_stem = fork.rule("stem").credit(h.detach(), info)
        h.backward(of_stem.delta / B)
        fork.step("stem")
        leaf = leaf_of(h)
        trunk = model.trunk(leaf).tanh()
        ends = {"left": model.left(trunk), "right": model.right(trunk)}
        credits = {name: fork.rule(name).credit(end.detach(), info) for name, end in ends.items()}
        torch.autograd.backward(list(ends.values()), [credits[name].delta / B for name in ends])
        fork.teach("stem", leaf, info, of_stem, None)
        fork.step("trunk")
        leaves = {name: leaf_of(end) for name, end in ends.items()}
        found = losses(model.head(torch.cat(list(leaves.values()), 1)), y)
        found.mean().backward()
        for name in ends:
            fork.teach(name, leaves[name], info, credits[name], found.detach())
        fork.step("head")


CASES: dict[str, tuple[Any, tuple[str, ...], Any, Any]] = {
    "two headed": (TwoHeaded, ("trunk", "inner"), two_losses, two_headed_by_hand),
    "forked": (Forked, ("stem", "left", "right"), losses, forked_by_hand),
}


def build(case: str, rule: Rule) -> Decoupled:
    torch.manual_seed(1)
    make, at, *_ = CASES[case]
    net = sg.decouple(make().double(), at, rule, batches(1)[0][0])
    for p in net.rules.parameters():
        nn.init.normal_(p, std=0.2)
    return net


@pytest.mark.parametrize("rule", LISTENING)
@pytest.mark.parametrize("case", CASES)
def test_branches_learn_what_the_loop_by_hand_learns(case: str, rule: str) -> None:
    net = build(case, RULES[rule]())
    twin, start = copy.deepcopy(net), copy.deepcopy(net.state_dict())
    _, at, criterion, by_hand = CASES[case]
    engine = InProcess(net, criterion, sgd)
    for x, y, ids in batches(STEPS):
        engine.step(x, y, ids=ids)
    by_hand(twin)
    assert_same(net.state_dict(), twin.state_dict())
    for name in at:
        own = [key for key in start if key.startswith(f"rules.{name}.")]
        assert any(not torch.equal(start[key], net.state_dict()[key]) for key in own), name


class Notes(sg.SyntheticGradient):
    """Notes the loss values that come with its messages."""

    def __init__(self, heard: dict[str, list[Tensor | None]]) -> None:
        super().__init__()
        self.heard = heard

    def __deepcopy__(self, memo: dict[int, Any]) -> Notes:
        return Notes(self.heard)

    def credit(self, h: Tensor, info: Info) -> Credit:
        made = super().credit(h, info)
        made.value = torch.full((len(h),), 7.0, dtype=h.dtype)
        return made

    def observe_grad(self, h: Any, info: Any, message: Message, pending: Any) -> Any:
        self.heard.setdefault(self.name, []).append(message.loss)
        return super().observe_grad(h, info, message, pending)


@pytest.mark.parametrize(
    ("case", "without"), [("two headed", {"trunk"}), ("forked", {"stem"})], ids=["two headed", "forked"]
)
def test_loss_values_come_where_nothing_branches_only(case: str, without: set[str]) -> None:
    heard: dict[str, list[Tensor | None]] = {}
    net = build(case, Notes(heard))
    _, at, criterion, _ = CASES[case]
    x, y, ids = batches(1)[0]
    given: list[Tensor] = []

    def noted(output: Any, target: Tensor) -> Tensor:
        given.append(criterion(output, target))
        return given[-1]

    InProcess(net, noted, sgd).step(x, y, ids=ids)
    assert heard.keys() == set(at)
    for name, (found,) in heard.items():
        if name in without:
            assert found is None, name
        else:
            assert found is not None, name
            assert torch.equal(found, given[0]), name


def test_in_a_chain_the_rule_above_says_the_loss_values() -> None:
    heard: dict[str, list[Tensor | None]] = {}
    model = nn.Sequential(nn.Linear(6, 7), nn.Linear(7, 7), nn.Linear(7, CLASSES)).double()
    x, y, ids = batches(1)[0]
    net = sg.decouple(model, ["0", "1"], Notes(heard), x)
    InProcess(net, lambda o, t: F.cross_entropy(o, t, reduction="none"), sgd).step(x, y, ids=ids)
    assert heard["0"][0] is not None
    assert heard["0"][0].tolist() == [7.0] * B
    assert heard["1"][0] is not None
    assert heard["1"][0].tolist() != [7.0] * B


def test_a_head_without_credit_leaves_the_rest_of_the_message_to_the_rule_below() -> None:
    """The rule at a trunk has two readers, of which one learns nothing: it hears what the other sends back."""
    torch.manual_seed(3)
    rules = {"trunk": sg.SyntheticGradient(context=CLASSES), "inner": sg.NoBackprop()}
    x, y, _ = batches(1)[0]
    nets = [sg.decouple(TwoHeaded().double(), ["trunk", "inner"], rules, x)]
    nets.append(copy.deepcopy(nets[0]))
    before = copy.deepcopy(nets[0].interfaces["trunk"].rule.state_dict())
    InProcess(nets[0], two_losses, sgd).step(x, y)
    Locked(nets[1], two_losses, sgd).step(
        x, y
    )  # in its first step the plain loop has the same weights everywhere
    ours, theirs = (net.interfaces["trunk"].rule.state_dict() for net in nets)
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, msg=name)
    assert any(not torch.equal(ours[name], before[name]) for name in before)
