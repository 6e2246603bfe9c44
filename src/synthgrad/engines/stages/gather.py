"""Brings the weights of all stages into the network of every process."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from ...core import Decoupled, Rule
from ..apart import Part
from .transport import Transport

__all__ = ["Gather"]


class Gather:
    """Knows which tensors each stage changes, and sends these to all. Blocks; all must call it.

    Args:
        net: the network.
        parts: of it, one for each stage.
        transport: between the processes.
        num_replicas: copies of every stage, of which the first sends.
    """

    def __init__(
        self, net: Decoupled, parts: Sequence[Part], transport: Transport, num_replicas: int
    ) -> None:
        self._owned = [_tensors(net, k, p) for k, p in enumerate(parts)]
        self._transport = transport
        self._num_replicas = num_replicas

    def __call__(self) -> None:
        for stage, owned in enumerate(self._owned):
            for tensor in owned():
                self._transport.broadcast(tensor.data, stage * self._num_replicas)


def _tensors(net: Decoupled, stage: int, part: Part) -> Callable[[], list[Tensor]]:
    """Return what lists the tensors that a stage changes: of its module, and of the rules that are learned there."""
    sites = list(net.graph.sites)
    rules: list[Rule | nn.Module] = [net.interfaces[sites[stage]].rule] if stage < len(sites) else []
    if stage and (supplies := net.interfaces[sites[stage - 1]].input_rule) is not None:
        rules.append(supplies)

    def found() -> list[Tensor]:
        own = [net.model.get_parameter(n) for n in net.graph.modules[stage].parameters]
        own += [net.model.get_buffer(n) for n in sorted(part.buffers)]
        return [*own, *(t for rule in rules for t in (*rule.parameters(), *rule.buffers()))]

    return found
