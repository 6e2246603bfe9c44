"""Copies the weights of all stages into the network of every process."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from ...core import Decoupled, Rule
from ..parts import Part
from .coordinator import Coordinator

__all__ = ["Gather"]


class Gather:
    """Knows which tensors each stage changes, and sends these to all. Blocks; all must call it.

    Args:
        net: the network.
        parts: the parts of the network, one for each stage.
        coordinator: the coordinator of all ranks; None if there is none, and nothing can be sent to all.
        num_replicas: the number of copies of every stage; the first copy sends.
        timeout_s: how long to wait for the others at each tensor, in seconds.
    """

    def __init__(
        self,
        net: Decoupled,
        parts: Sequence[Part],
        coordinator: Coordinator | None,
        num_replicas: int,
        timeout_s: float,
    ) -> None:
        self._owned = [_tensors(net, k, p) for k, p in enumerate(parts)]
        self._coordinator = coordinator
        self._num_replicas = num_replicas
        self._timeout_s = timeout_s

    def names(self, net: Decoupled, stage: int) -> list[str]:
        """Return the names, in the state dict of a network, of the tensors that a stage changes."""
        own = {id(t) for t in self._owned[stage]()}
        saved = net.state_dict()  # some buffers are not part of the state dict
        state = {**dict(net.named_parameters()), **dict(net.named_buffers())}
        return [name for name, t in state.items() if id(t) in own and name in saved]

    def __call__(self) -> None:
        assert self._coordinator is not None
        for stage, owned in enumerate(self._owned):
            for tensor in owned():
                check = self._coordinator.all_ranks_check(self._timeout_s, "gather")
                self._coordinator.transport.broadcast(tensor.data, stage * self._num_replicas, check)


def _tensors(net: Decoupled, stage: int, part: Part) -> Callable[[], list[Tensor]]:
    """Return a function that lists the tensors that a stage changes.

    They belong to its module, and to the rules that are trained there.
    """
    sites = list(net.graph.sites)
    rules: list[Rule | nn.Module] = [net.interfaces[sites[stage]].rule] if stage < len(sites) else []
    if stage and (supplies := net.interfaces[sites[stage - 1]].input_rule) is not None:
        rules.append(supplies)

    def found() -> list[Tensor]:
        own = [net.model.get_parameter(n) for n in net.graph.modules[stage].parameters]
        own += [net.model.get_buffer(n) for n in sorted(part.buffers)]
        return [*own, *(t for rule in rules for t in (*rule.parameters(), *rule.buffers()))]

    return found
