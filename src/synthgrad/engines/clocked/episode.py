"""The state of an episode: clocks, states, messages, and what each lock group keeps until its next update."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from ...core import ShapeError
from ...core.in_flight import InFlight
from .network import ClockedNetwork, batch_of
from .wiring import LockGroup, Node

__all__ = ["Episode", "PendingUpdate", "detached"]


@dataclass(slots=True)
class PendingUpdate:
    """What a lock group collects from one update to the next.

    Attributes:
        losses: scalars, attached.
        credited: messages to other groups: the message, attached; the gradient that it learns from, in the
            criterion's units; and the `InFlight` of the message.
        read: the messages from other groups that were read, and the states that unrolls started from; one
            entry per read.
        begun: whether a member has ticked.
    """

    losses: list[Tensor] = field(default_factory=list["Tensor"])
    credited: list[tuple[Tensor, Tensor, InFlight]] = field(
        default_factory=list["tuple[Tensor, Tensor, InFlight]"]
    )
    read: list[InFlight] = field(default_factory=list["InFlight"])
    begun: bool = False


class Episode:
    """One run of a clocked network from initial states.

    Args:
        net: the network.

    Attributes:
        clock: the number of the step within the episode, from 0.
        batch_size: the batch size of the episode; None until it is known.
        states: the states of the nodes that have ticked.
        latest: the last message on each edge.
        pending: what each lock group has collected for its next update.
    """

    def __init__(self, net: ClockedNetwork) -> None:
        self._net = net
        self.clock = 0
        self.batch_size: int | None = None
        self.states: dict[str, Any] = {}
        self.latest: dict[str, InFlight] = {}
        self.pending = {group: PendingUpdate() for group in net.wiring.groups}
        # The states that the present unrolls have started from, if a rule learns from their gradient.
        self._starts: dict[str, InFlight] = {}

    def pending_of(self, name: str) -> PendingUpdate:
        """Return what the group of a node has collected."""
        return self.pending[self._net.wiring.group_of[name]]

    def check_batch_size(self, inputs: Mapping[str, Any]) -> None:
        """Take the batch size from the first external data, and refuse data of another size.

        Raises:
            ShapeError: naming the node.
        """
        for name, value in inputs.items():
            size = batch_of(value)
            if self.batch_size is None:
                self.batch_size = size
            if size is not None and size != self.batch_size:
                raise ShapeError(
                    f"the inputs of node '{name}' have a batch of {size}, expected {self.batch_size} as in the steps "
                    "before; end the episode with last=True, or call reset(), before the batch changes"
                )
        if self.batch_size is None:
            self.batch_size = self._net.batch_size

    def set_state(self, node: Node, state: Any) -> None:
        """Set the state of a node.

        Raises:
            ShapeError: if it differs in structure or shape from the example.
        """
        where, layout = f"the state that node '{node.name}' returned", self._net.layouts[node.name]
        if layout is not None:
            layout.check(state, where, self.batch_size)
        elif state is not None:
            raise ShapeError(
                f"{where} is a {type(state).__name__}, expected None as in the example; return the same"
            )
        self.states[node.name] = state

    def packed_state(self, name: str) -> Tensor | None:
        """Return the state of a node, ``(B, F)``, detached; None if the node has no state.

        Before the first tick the state is zero.
        """
        state, layout = self.states.get(name), self._net.layouts[name]
        if layout is None:
            return None
        if state is not None:
            return layout.pack(state).detach()  # for rules and saved states, which need the values only
        assert self.batch_size is not None
        return torch.zeros(self.batch_size, layout.num_features, dtype=layout.dtype, device=layout.device)

    def begin_update(self, group: LockGroup, starts: Mapping[str, InFlight]) -> None:
        """Start to collect for the next update of a group.

        Its states and messages are cut from the graph of the last one.

        Args:
            group: the group.
            starts: the states to start from, of members whose states have a rule.
        """
        self.pending[group] = PendingUpdate()
        for node in group.nodes:
            if node.name in starts:
                self._start_from(node.name, starts[node.name])
            else:
                # The truncation between two unrolls: no rule gives this state credit.
                self.states[node.name] = detached(self.states.get(node.name))
            for edge in self._net.wiring.outgoing[node.name]:
                sent = self.latest.get(edge.name)
                # An edge that is not cut passes messages on with their graph. The backward pass has just freed it, so
                # a later reader must not run backward through it again.
                if edge.rule.waits and sent is not None and sent.fed is not None:
                    sent.fed = sent.fed.detach()

    def _start_from(self, name: str, start: InFlight) -> None:
        """Continue a node from a state whose rule learns from the state's gradient."""
        layout = self._net.layouts[name]
        assert layout is not None
        self.states[name] = layout.unpack(start.h if start.fed is None else start.fed)
        self._starts[name] = start
        if start.missing:
            self.pending_of(name).read.append(start)

    def settle(self) -> None:
        """Drop the rules' own predictions, which a resumed run would not have."""
        for flight in (*self.latest.values(), *self._starts.values()):
            flight.settle()

    def state_dict(self) -> dict[str, Any]:
        """Return everything except graphs, as plain containers of tensors.

        A message or state whose gradient is partly in a graph is saved, but the resumed run does not learn
        from it.
        """
        states = {name: self.packed_state(name) for name, s in self.states.items() if s is not None}
        begun = [pending for pending in self.pending.values() if pending.begun]
        half_read = {id(sent) for pending in begun for sent in pending.read}
        return {
            "clock": self.clock,
            "batch_size": self.batch_size,
            "states": states,
            "starts": {n: s.state_dict() for n, s in self._starts.items() if not self.pending_of(n).begun},
            "latest": {n: _saved(s, lost=id(s) in half_read) for n, s in self.latest.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load what `state_dict` returned into a new episode."""
        self.clock, self.batch_size = int(state["clock"]), state["batch_size"]
        for name, flat in state["states"].items():
            layout = self._net.layouts[name]
            assert layout is not None
            self.states[name] = layout.unpack(flat)
        for name, saved in state["starts"].items():
            self._start_from(name, InFlight.from_state(saved))
        self.latest = {name: InFlight.from_state(saved) for name, saved in state["latest"].items()}


def _saved(flight: InFlight, *, lost: bool) -> dict[str, Any]:
    """Return a message as plain containers of tensors.

    Args:
        flight: the message.
        lost: whether its gradient can no longer be completed. It can still be read, but is not learned from.
    """
    state = flight.state_dict()
    return {**state, "part": None, "missing": 0} if lost else state


def detached(tree: Any) -> Any:
    """Return a nest whose tensors are detached."""
    return pytree.tree_map(lambda leaf: leaf.detach() if isinstance(leaf, Tensor) else leaf, tree)
