"""The modules of a clocked network with the rules at their interfaces, built for the shapes of an example."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ...core import ConfigError, Rule, ShapeError, Site, StateLayout
from .step_inputs import check_names
from .wiring import INPUT, Edge, Node, Wiring

__all__ = ["ClockedNetwork", "batch_of"]


class ClockedNetwork(nn.Module):
    """Nodes, edges and their rules.

    When called, it is the plain network: no rule is used, and nothing is cut.

    The keys of its state dict are those of a node's module under ``nodes.NAME.``, and those of a rule under
    ``rules.SENDER->RECEIVER.`` or ``rules.NAME:state.``.

    Args:
        wiring: the nodes and edges.
        example: the external data of one tick by node, batch first. Copies of the nodes run once on it, to
            find the shapes of messages and states.

    Attributes:
        wiring: the nodes and edges.
        nodes, rules: the modules, by name.
        layouts: the layout of each node's state; None for a node without a state.
        sites: the shapes of messages, and of states with a rule, in the example, by interface.
        batch_size: the batch size of the example; 1 if it has no data.

    Raises:
        ConfigError: if the example names an unknown node, or a message is read before it can have been sent.
        ShapeError: if a module does not return outputs and state, or a message is not a floating tensor.
        CutError: if a rule does not fit its interface.
    """

    def __init__(self, wiring: Wiring, example: Mapping[str, Any]) -> None:
        super().__init__()
        self.wiring = wiring
        self.nodes = nn.ModuleDict()
        for node in wiring.nodes.values():
            if hasattr(self.nodes, node.name):
                raise ConfigError(
                    f"node name '{node.name}' is taken by PyTorch's containers; rename the node"
                )
            self.nodes[node.name] = node.module
        self.layouts: dict[str, StateLayout | None] = {}
        self.sites: dict[str, Site] = {}
        self.rules = nn.ModuleDict()
        check_names("the example", example, wiring.nodes)
        self.batch_size = batch_of(dict(example)) or 1
        self._run_example(example)
        for edge in wiring.edges.values():
            layout = self.layouts[edge.receiver]
            site = replace(self.sites[edge.name], receiver=None if layout is None else layout.num_features)
            self.rules[edge.name] = edge.rule.bind(site)
        for node in wiring.nodes.values():
            if node.state_rule is not None:
                self.rules[node.state_name] = node.state_rule.bind(self.sites[node.state_name])

    def rule(self, name: str) -> Rule:
        """Return the rule at an interface."""
        return cast(Rule, self.rules[name])

    def forward(self, sequence: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Run from initial states over the steps of a sequence, as one graph.

        Args:
            sequence: the external data of each step, by node.

        Returns:
            For each step, the outputs of the nodes that have ticked.
        """
        batch_size = batch_of([dict(inputs) for inputs in sequence]) or self.batch_size
        states: dict[str, Any] = {}
        latest: dict[str, Tensor] = {}
        made: list[dict[str, Any]] = []
        for step, inputs in enumerate(sequence):
            made.append({})
            for node in self.wiring.nodes.values():
                if not node.ticks(step):
                    continue
                fed = self.feed(node, inputs, latest, batch_size)
                outputs, states[node.name] = self.call(node, fed, states.get(node.name))
                for edge in self.wiring.outgoing[node.name]:
                    latest[edge.name] = message_of(edge, outputs)
                made[-1][node.name] = outputs
        return made

    def feed(
        self, node: Node, inputs: Mapping[str, Any], read: Mapping[str, Tensor], batch_size: int
    ) -> dict[str, Any]:
        """Return the inputs of a node's module: external data, and the message of each sender.

        Args:
            node: the node.
            inputs: the external data of the step, by node.
            read: the messages by edge; missing if nothing has been sent yet.
            batch_size: ``B``.
        """
        fed = {INPUT: inputs[node.name]} if node.name in inputs else {}
        for edge in self.wiring.incoming[node.name]:
            h = read.get(edge.name)
            fed[edge.sender] = self.initial(edge, batch_size) if h is None else h
        return fed

    def initial(self, edge: Edge, batch_size: int) -> Tensor:
        """Return the message that is read before the first one is sent, ``(B, ...)``."""
        if edge.initial is None:
            site = self.sites[edge.name]
            return torch.zeros(batch_size, *site.shape[1:], dtype=site.dtype, device=site.device)
        return edge.initial.expand(batch_size, *edge.initial.shape)

    def call(
        self, node: Node, fed: dict[str, Any], state: Any, module: nn.Module | None = None
    ) -> tuple[Any, Any]:
        """Run a node's module, or a copy of it, once.

        Raises:
            ShapeError: if it does not return a pair.
        """
        try:
            returned = (module or self.nodes[node.name])(fed, state)
        except Exception as error:
            error.add_note(f"raised while the module of node '{node.name}' ran")
            raise
        if not isinstance(returned, tuple) or len(returned) != 2:
            raise ShapeError(
                f"the module of node '{node.name}' returned a {type(returned).__name__}, expected the pair (outputs, "
                "state); return None as the state where there is none"
            )
        return returned

    def _run_example(self, example: Mapping[str, Any]) -> None:
        # Copies, so that the buffers of the modules (BatchNorm's statistics) do not change.
        stand_ins = {name: copy.deepcopy(module) for name, module in self.nodes.items()}
        devices = sorted({p.device.index for p in self.parameters() if p.is_cuda})
        latest: dict[str, Tensor] = {}
        with torch.no_grad(), torch.random.fork_rng(devices):
            for node in self.wiring.nodes.values():
                self._run_once(node, stand_ins[node.name], example, latest)
        for edge in self.wiring.edges.values():
            if edge.initial is not None and edge.initial.shape != latest[edge.name].shape[1:]:
                raise ShapeError(
                    f"edge '{edge.name}': initial has the shape {tuple(edge.initial.shape)}, expected "
                    f"{tuple(latest[edge.name].shape[1:])}, a message without its batch dimension"
                )

    def _run_once(
        self, node: Node, module: nn.Module, example: Mapping[str, Any], latest: dict[str, Tensor]
    ) -> None:
        """Run one node on the example, and record the shapes of its messages and its state."""
        for edge in self.wiring.incoming[node.name]:
            if edge.name not in latest and edge.initial is None:
                raise ConfigError(
                    f"edge '{edge.name}': node '{edge.receiver}' runs before '{edge.sender}' has sent anything, and has "
                    "nothing to read then; give the edge initial=torch.zeros(...) of the shape of a message "
                    "without its batch dimension"
                )
        fed = self.feed(node, example, latest, self.batch_size)
        outputs, state = self.call(node, fed, None, module)
        tensors = [t for t in (*module.parameters(), *module.buffers()) if t.is_floating_point()]
        self.layouts[node.name] = None if state is None else StateLayout(state, node.batch_dim)
        for edge in self.wiring.outgoing[node.name]:
            latest[edge.name] = h = message_of(edge, outputs)
            dtype = tensors[0].dtype if tensors else h.dtype
            self.sites[edge.name] = Site(edge.name, tuple(h.shape), dtype, h.device, node.module)
        if node.state_rule is not None:
            if state is None:
                raise ConfigError(
                    f"node '{node.name}' has a state_rule and no state; return a state, or leave the rule out"
                )
            flat = StateLayout(state, node.batch_dim).pack(state)
            dtype = tensors[0].dtype if tensors else flat.dtype
            self.sites[node.state_name] = Site(
                node.state_name, tuple(flat.shape), dtype, flat.device, node.module
            )


def batch_of(tree: Any) -> int | None:
    """Return the size of the first dimension of the first tensor in a nest; None if there is no tensor."""
    for leaf in pytree.tree_leaves(tree):
        if isinstance(leaf, Tensor) and leaf.ndim:
            return leaf.shape[0]
    return None


def message_of(edge: Edge, outputs: Any) -> Tensor:
    """Return the message that an edge carries, out of its sender's outputs.

    Raises:
        ShapeError: if there is none, or it is not a floating tensor.
    """
    if isinstance(outputs, Mapping):
        if edge.output not in outputs:
            raise ShapeError(
                f"edge '{edge.name}' carries the output {edge.output!r} of node '{edge.sender}', which returned "
                f"{list(outputs)}; say with output which of these it is"
            )
        h = outputs[edge.output]
    elif edge.output is None:
        h = outputs
    else:
        raise ShapeError(
            f"edge '{edge.name}' carries the output '{edge.output}', and node '{edge.sender}' returned a "
            f"{type(outputs).__name__}, expected a dict; leave output out where there is one tensor"
        )
    if not isinstance(h, Tensor) or not h.is_floating_point() or not h.ndim:
        what = f"shape {tuple(h.shape)} and dtype {h.dtype}" if isinstance(h, Tensor) else type(h).__name__
        raise ShapeError(
            f"edge '{edge.name}': got a message of {what}, expected a floating tensor with the batch first; gradients "
            "cannot flow through anything else"
        )
    return h
