"""The inputs of one step of a clocked network."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ...core import ConfigError, Info
from ...core.given import brief
from .wiring import Wiring

__all__ = ["StepInputs", "check_names"]


@dataclass(frozen=True, slots=True)
class StepInputs:
    """The external data of a step.

    Attributes:
        step: the number of the step, from 0.
        inputs, targets: by node.
        context: the context of the rules, for all or by interface.
        ids: the ids of the examples, ``(B,)``.
        last: whether the episode ends with this step.
    """

    step: int
    inputs: Mapping[str, Any]
    targets: Mapping[str, Any]
    context: Tensor | Mapping[str, Tensor] | None
    ids: Tensor | None
    last: bool

    def info(self, name: str, sender: str, receiver: Tensor | None = None) -> Info:
        """Return what is known at an interface.

        Args:
            name: the name of the interface.
            sender: the node that sends the message.
            receiver: the state of the node that will read it, ``(B, F)``.
        """
        context = self.context.get(name) if isinstance(self.context, Mapping) else self.context
        inputs = self.inputs.get(sender)
        return Info(context, self.ids, self.step, inputs if isinstance(inputs, Tensor) else None, receiver)

    def check(
        self, wiring: Wiring, with_criterion: Container[str], interfaces: Iterable[str], clock: int
    ) -> None:
        """Refuse unknown names, and targets that have no criterion or no tick.

        Args:
            wiring: the nodes and edges.
            with_criterion: the nodes that have a criterion.
            interfaces: the names of the interfaces.
            clock: the number of the step within the episode.

        Raises:
            ConfigError: naming the node or interface.
        """
        check_names("inputs", self.inputs, wiring.nodes)
        check_names("targets", self.targets, wiring.nodes)
        if isinstance(self.context, Mapping):
            check_names("context", self.context, interfaces)
        for name, target in self.targets.items():
            if target is None:
                continue
            if name not in with_criterion:
                raise ConfigError(
                    f"a target is given for node '{name}', which has no criterion; add one to losses"
                )
            node = wiring.nodes[name]
            if not node.ticks(clock):
                raise ConfigError(
                    f"a target is given for node '{name}' in step {clock} of the episode, in which it does not tick "
                    f"(period {node.period}); give it when it does, and None otherwise"
                )


def check_names(what: str, names: Iterable[str], known: Iterable[str]) -> None:
    """Refuse a name that is not known.

    Raises:
        ConfigError: naming the first one; or if the value has no names, because it is not a mapping.
    """
    listed = list(known)
    if not isinstance(names, Iterable) or isinstance(names, Tensor):
        raise ConfigError(
            f"{what}: got {brief(names)}, expected a mapping by name of node, as in {{{listed[0]!r}: ...}}"
        )
    unknown = [name for name in names if name not in listed]
    if unknown:
        raise ConfigError(f"{what}: the name '{unknown[0]}' is unknown, expected one of {listed}")
