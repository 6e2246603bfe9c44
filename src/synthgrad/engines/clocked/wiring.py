"""The fixed structure of a clocked network: senders and receivers, clocks, and who learns together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import lcm

from torch import Tensor, nn

from ...core import ConfigError, Rule
from ...core.port import refuse_second_messages
from ...rules import TrueGradient

__all__ = ["INPUT", "Edge", "LockGroup", "Node", "Wiring"]

#: The key of the external data of a tick in the inputs of a module.
INPUT = "input"


@dataclass(frozen=True, slots=True, eq=False)
class Node:
    """A module with a clock of its own.

    The module is called as ``module(inputs, state) -> (outputs, state)``. ``inputs`` holds the latest message
    of each sender by its name, ``(B, ...)``, and under ``"input"`` the external data of the tick, if there is
    any; the module must not change them in place. ``state`` is a tensor, or nested tuples, lists and dicts of
    tensors. It is None at the first tick of an episode, and always if the module has no state. ``outputs`` is
    a tensor, or a dict of tensors, of which each edge carries one.

    Attributes:
        name: the name, unique among the nodes.
        module: the module, which is trained in place.
        period: the node ticks in the steps ``t``, counted from 0, for which ``(t + 1) % period == 0``.
        unroll: the number of ticks between two updates, as in truncated backpropagation through time.
        state_rule: gives credit to the state at the end of an unroll and learns from the gradient at the
            start of the next one, under the name ``"NAME:state"``; None for plain truncation.
        batch_dim: the batch dimension in every part of the state.
    """

    name: str
    module: nn.Module
    period: int = 1
    unroll: int = 1
    state_rule: Rule | None = None
    batch_dim: int = 0

    @property
    def interval(self) -> int:
        """The number of steps between two updates."""
        return self.period * self.unroll

    @property
    def state_name(self) -> str:
        """The name of the interface between two unrolls."""
        return f"{self.name}:state"

    def ticks(self, step: int) -> bool:
        """Return whether the node runs in this step."""
        return (step + 1) % self.period == 0


@dataclass(frozen=True, slots=True, eq=False)
class Edge:
    """An interface between two nodes: the receiver reads the sender's latest message whenever it ticks.

    If the receiver comes later in the order of the nodes, it can read a message in the step in which it is
    sent. If it comes earlier, or is the sender itself, it reads the message from the following step on. So a
    cycle always runs through time.

    Attributes:
        sender, receiver: the names of the nodes.
        rule: the pattern of the rule that gives credit to the sender. With `TrueGradient` the edge is not
            cut: both nodes learn together, from one backward pass.
        output: the key of the message in the sender's outputs, if these are a dict.
        initial: the message that is read before the first one is sent, for one example, without the batch
            dimension; None for zeros. Needed if the receiver comes first in the order of nodes.
    """

    sender: str
    receiver: str
    rule: Rule
    output: str | None = None
    initial: Tensor | None = None

    @property
    def name(self) -> str:
        """The name of the interface, ``"A->B"``."""
        return f"{self.sender}->{self.receiver}"


@dataclass(frozen=True, slots=True, eq=False)
class LockGroup:
    """Nodes that learn together because the edges between them are not cut; often a single node.

    Attributes:
        nodes: the nodes, in order.
        interval: the number of steps between two updates: the least common multiple of the nodes' intervals.
    """

    nodes: tuple[Node, ...]
    interval: int


class Wiring:
    """The graph of nodes and edges.

    Args:
        nodes: the nodes, in the order in which they run within a step.
        edges: the edges, at most one from a node to another (or to itself).

    Attributes:
        nodes: the nodes by name, in order.
        edges: the edges by name.
        incoming, outgoing: the edges of each node.
        groups: the lock groups; every node is in one.
        group_of: the group of each node, by name.
        interval: the number of steps after which every node has just updated and no graph is kept.

    Raises:
        ConfigError: if a name, a period or a rule is not allowed.
    """

    def __init__(self, nodes: Sequence[Node], edges: Sequence[Edge]) -> None:
        _check_nodes(nodes)
        self.nodes = {n.name: n for n in nodes}
        _check_edges(edges, list(self.nodes))
        self.edges = {e.name: e for e in edges}
        self.incoming = {n: tuple(e for e in edges if e.receiver == n) for n in self.nodes}
        self.outgoing = {n: tuple(e for e in edges if e.sender == n) for n in self.nodes}
        self._position = {n: k for k, n in enumerate(self.nodes)}
        self.groups = self._find_groups()
        self.group_of = {n.name: group for group in self.groups for n in group.nodes}
        self.interval = lcm(*(group.interval for group in self.groups))

    def is_delayed(self, edge: Edge) -> bool:
        """Return whether a message is read only from the following step on.

        This is so if the receiver runs before the sender, or is the sender.
        """
        return self._position[edge.receiver] <= self._position[edge.sender]

    def reads(self, edge: Edge, step: int) -> int:
        """Return how often a message of ``step`` will be read before the next one replaces it."""
        first = step + self.is_delayed(edge)
        period = self.nodes[edge.receiver].period
        return (first + self.nodes[edge.sender].period) // period - first // period

    def group_closed_by(self, name: str) -> LockGroup | None:
        """Return the group of which this node is the last to run in a step, or None if it is not the last."""
        group = self.group_of[name]
        return group if group.nodes[-1].name == name else None

    def _find_groups(self) -> tuple[LockGroup, ...]:
        """Return the groups of nodes that are connected by edges that are not cut."""
        joined = {name: {name} for name in self.nodes}
        for edge in self.edges.values():
            if edge.rule.waits:
                both = joined[edge.sender] | joined[edge.receiver]
                joined |= dict.fromkeys(both, both)
        unique = {id(names): names for names in joined.values()}
        members = [tuple(n for n in self.nodes.values() if n.name in names) for names in unique.values()]
        return tuple(LockGroup(nodes, lcm(*(n.interval for n in nodes))) for nodes in members)


def _check_nodes(nodes: Sequence[Node]) -> None:
    if not nodes:
        raise ConfigError("no nodes were given; give at least one")
    owner: dict[int, str] = {}
    seen: set[str] = set()
    for node in nodes:
        name = node.name
        # Names become keys of the state dict, in which a dot separates a module from its submodule.
        if not name or name == INPUT or any(mark in name for mark in (".", ":", "->")):
            raise ConfigError(
                f"node name {name!r}: expected one that is not empty, is not 'input' (the name of external data) and "
                "has no '.', ':' or '->' in it; rename the node"
            )
        if name in seen:
            raise ConfigError(f"two nodes are named '{name}', expected names that differ; rename one")
        seen.add(name)
        for what, value in (("period", node.period), ("unroll", node.unroll)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ConfigError(f"node '{name}': {what}={value!r}, expected a whole number from 1")
        if node.state_rule is not None:
            _check_rule(node.state_rule, f"state_rule of node '{name}'", node.state_name)
            if node.state_rule.waits:
                raise ConfigError(
                    f"node '{name}': its state_rule makes it wait for the gradient of the next unroll, so no unroll ends; "
                    "use a longer unroll, or a rule that does not wait"
                )
        for key, parameter in node.module.named_parameters():
            other = owner.setdefault(id(parameter), name)
            if other != name:
                raise ConfigError(
                    f"parameter '{key}' of node '{name}' belongs to node '{other}' too, and both would update it "
                    "independently; give each node its own, or make them one node"
                )


def _check_edges(edges: Sequence[Edge], known: list[str]) -> None:
    seen: set[str] = set()
    for edge in edges:
        for end in (edge.sender, edge.receiver):
            if end not in known:
                raise ConfigError(f"edge '{edge.name}' names the node '{end}', expected one of {known}")
        if edge.name in seen:
            raise ConfigError(
                f"edge '{edge.name}' is given twice, expected one from a node to another; join the tensors that it is to "
                "carry in one message"
            )
        seen.add(edge.name)
        _check_rule(edge.rule, f"edge '{edge.name}'", edge.name)
        # The lock groups are fixed when the engine is made, so a rule cannot decide for each message whether to wait.
        if edge.rule.waits and not isinstance(edge.rule, TrueGradient):
            raise ConfigError(
                f"edge '{edge.name}': a {type(edge.rule).__name__} decides with every message whether the sender waits, "
                "expected a rule that always does (TrueGradient) or never; train first with one, then with the other"
            )


def _check_rule(rule: Rule, where: str, name: str) -> None:
    if not isinstance(rule, Rule):
        raise ConfigError(f"{where}: got a {type(rule).__name__}, expected a rule")
    refuse_second_messages(rule, name)
    if rule.needs_output_error:
        raise ConfigError(
            f"{where}: its rule needs the network's output error, and here every node has outputs and losses of its own; use "
            "InProcess, Stages or the plain loop"
        )
    if rule.error_to_h:
        raise ConfigError(
            f"{where}: its rule lets its error flow into h, which arrives after the sender has updated; use "
            "error_to_h=False"
        )
