"""The timetable of networks that tick at different rates: what is read, answered and learned when, from the clocks alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from math import lcm

from ..events import Event
from .schedule import ANSWER, Terms

__all__ = ["ClockedNode", "ClockedEdge", "clocked"]


#: A node and the step in which it ran.
_Tick = tuple[str, int]


@dataclass(frozen=True, slots=True)
class ClockedNode:
    """A node: when it ticks, learns and is judged.

    Attributes:
        name: of the node.
        period: it ticks in the steps ``t`` from 0 for which ``(t + 1) % period == 0``.
        unroll: ticks between two updates.
        target: it has a loss in every so many steps; 0 for never.
        state: terms of the rule for its state; None for plain truncation.
    """

    name: str
    period: int = 1
    unroll: int = 1
    target: int = 0
    state: Terms | None = None

    def ticks(self, step: int) -> bool:
        """Does the node run in this step?"""
        return (step + 1) % self.period == 0

    def is_judged(self, step: int) -> bool:
        """Has it a loss in this step?"""
        return self.target > 0 and self.ticks(step) and (step + 1) % self.target == 0


@dataclass(frozen=True, slots=True)
class ClockedEdge:
    """An edge between two nodes; it is not cut where its rule waits.

    Attributes:
        sender, receiver: names of nodes.
        terms: of its rule; lags are not read.
    """

    sender: str
    receiver: str
    terms: Terms = field(default_factory=Terms)

    @property
    def name(self) -> str:
        """Name of the interface, ``"A->B"``."""
        return f"{self.sender}->{self.receiver}"


def clocked(nodes: Sequence[ClockedNode], edges: Sequence[ClockedEdge], steps: int) -> Iterator[Event]:
    """Yield the events of `Clocked`, for one episode that does not end.

    In each step the nodes run in their order. A tick is a forward pass, in which the latest messages are read, and a
    question for credit for each message that will be read. Nodes between which an edge is not cut learn together, when the
    last of them has run in a step that ends the unrolls of all: one backward pass, which completes the messages that
    nobody will read again; their rules observe; and each node updates that has learned something.

    Args:
        nodes: in the order in which they run. Their outputs depend on all that they read.
        edges: between them, in the order in which they were given.
        steps: how many.
    """
    run = _Run(nodes, edges)
    for step in range(steps):
        for node in nodes:
            if node.ticks(step):
                yield from run.tick(node, step)
            group = run.group_of[node.name]
            if node is group.nodes[-1] and (step + 1) % group.interval == 0:
                yield from run.learn(group, step)


@dataclass(slots=True, eq=False)
class _Sent:
    """A message, or a state that was handed on: where, when, and how many reads have yet to be answered."""

    name: str
    step: int
    terms: Terms
    missing: int


@dataclass(slots=True, eq=False)
class _Group:
    """Nodes that learn together, and what they hold from one update to the next.

    Attributes:
        nodes: in their order.
        interval: steps between two updates.
        read: messages from elsewhere and states, once for every read.
        ticks: of the nodes, in order, each with those of other nodes that its gradient goes on to.
        learning: ticks that have a loss or credit.
    """

    nodes: list[ClockedNode]
    interval: int
    read: list[_Sent] = field(default_factory=list[_Sent])
    ticks: dict[_Tick, list[_Tick]] = field(default_factory=dict[_Tick, list[_Tick]])
    learning: set[_Tick] = field(default_factory=set[_Tick])

    def reached(self) -> set[str]:
        """Return the nodes that the backward pass reaches."""
        found: set[_Tick] = set()
        for tick in reversed(self.ticks):
            if tick in self.learning or tick in found:
                found |= {tick, *self.ticks[tick]}
        return {name for name, _ in found}


class _Run:
    def __init__(self, nodes: Sequence[ClockedNode], edges: Sequence[ClockedEdge]) -> None:
        self._order = [node.name for node in nodes]
        self._nodes = {node.name: node for node in nodes}
        self._edges = edges
        self._latest: dict[str, _Sent] = {}
        self._last: dict[str, int] = {}  # the last tick of a node
        self.group_of = _groups(nodes, edges)

    def tick(self, node: ClockedNode, step: int) -> Iterator[Event]:
        group = self.group_of[node.name]
        # The state brings in earlier messages too, but from no other senders than those whose latest ones are read now.
        fed: list[_Tick] = []
        for edge in (e for e in self._edges if e.receiver == node.name):
            sent = self._latest.get(edge.name)
            if sent is None:
                continue
            if sent.missing:
                group.read.append(sent)
            if edge.terms.waits and (edge.sender, sent.step) in group.ticks:
                fed.append((edge.sender, sent.step))
        group.ticks[node.name, step] = fed
        self._last[node.name] = step
        yield Event("forward", node.name, step, step)
        if node.is_judged(step):
            group.learning.add((node.name, step))
        for edge in (e for e in self._edges if e.sender == node.name):
            reads = 0 if edge.terms.waits else self._reads(edge, step)
            if reads:
                yield Event("credit", edge.name, step, step)
                if edge.terms.credits:
                    group.learning.add((node.name, step))
            self._latest[edge.name] = _Sent(edge.name, step, edge.terms, reads if edge.terms.listens else 0)

    def _reads(self, edge: ClockedEdge, step: int) -> int:
        """Return how often a message will be read before the next one: by the ticks of the receiver until then.

        A receiver that comes first in a step, or is the sender, reads it from the step after.
        """
        delayed = self._order.index(edge.receiver) <= self._order.index(edge.sender)
        sender, receiver = self._nodes[edge.sender], self._nodes[edge.receiver]
        return sum(map(receiver.ticks, range(step + delayed, step + delayed + sender.period)))

    def learn(self, group: _Group, step: int) -> Iterator[Event]:
        starts: list[_Sent] = []
        for node in group.nodes:
            if node.state is not None:
                name = f"{node.name}:state"
                yield Event("credit", name, step, step)
                starts.append(_Sent(name, step, node.state, int(node.state.listens)))
                if node.state.credits:
                    group.learning.add((node.name, self._last[node.name]))
        learned = group.reached()
        if learned:
            for node in group.nodes:
                yield Event("backward", node.name, step, step)
        for sent in group.read:
            sent.missing -= 1
        for sent in dict.fromkeys(group.read):
            if not sent.missing:
                for kind in ANSWER:
                    yield Event(kind, sent.name, step, sent.step)
                learned.add(_receiver(sent.name))
        for node in group.nodes:
            if node.name in learned:
                yield Event("update", node.name, step, step)
        group.read = [start for start in starts if start.missing]
        group.ticks, group.learning = {}, set()


def _receiver(name: str) -> str:
    """Return the node with which the rule at an interface is updated."""
    return name.removesuffix(":state") if name.endswith(":state") else name.split("->")[1]


def _groups(nodes: Sequence[ClockedNode], edges: Sequence[ClockedEdge]) -> dict[str, _Group]:
    """Join the nodes between which edges are not cut."""
    joined = {node.name: {node.name} for node in nodes}
    for edge in edges:
        if edge.terms.waits:
            both = joined[edge.sender] | joined[edge.receiver]
            joined |= dict.fromkeys(both, both)
    found: dict[str, _Group] = {}
    for node in nodes:
        if node.name not in found:
            members = [n for n in nodes if n.name in joined[node.name]]
            group = _Group(members, lcm(*(n.period * n.unroll for n in members)))
            found |= dict.fromkeys(joined[node.name], group)
    return found
