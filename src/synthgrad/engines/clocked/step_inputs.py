"""What is given in one step of a clocked network."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ...core import ConfigError, Info
from .wiring import Wiring

__all__ = ["StepInputs", "check_names"]


@dataclass(frozen=True, slots=True)
class StepInputs:
    """External data of a step.

    Attributes:
        step: number of the step, from 0.
        inputs, targets: by node.
        context: of the rules, for all or by interface.
        ids: which examples these are, ``(B,)``.
        last: does the episode end here?
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
            name: of the interface.
            sender: node that the message comes from.
            receiver: state of the one that will read it, ``(B, F)``.
        """
        context = self.context.get(name) if isinstance(self.context, Mapping) else self.context
        inputs = self.inputs.get(sender)
        return Info(context, self.ids, self.step, inputs if isinstance(inputs, Tensor) else None, receiver)

    def check(
        self, wiring: Wiring, with_criterion: Container[str], interfaces: Iterable[str], clock: int
    ) -> None:
        """Refuse names that there are none of, and targets that nothing can be compared with.

        Args:
            wiring: nodes and edges.
            judged: nodes that have a criterion.
            interfaces: names of the interfaces.
            clock: the step within the episode.

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
                    f"a target is given for node '{name}', which has no criterion; give losses one"
                )
            node = wiring.nodes[name]
            if not node.ticks(clock):
                raise ConfigError(
                    f"a target is given for node '{name}' in step {clock} of the episode, in which it does not tick "
                    f"(period {node.period}); give it when it does, and None else"
                )


def check_names(what: str, names: Iterable[str], known: Iterable[str]) -> None:
    """Raise `ConfigError` if a name is not among those known."""
    listed = list(known)
    unknown = [name for name in names if name not in listed]
    if unknown:
        raise ConfigError(f"{what}: the name '{unknown[0]}' is unknown, expected one of {listed}")
