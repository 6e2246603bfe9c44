"""What a timetable is made of: modules, what waits how long at the interfaces between them, and the number of steps."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from ..errors import ConfigError
from ..events import Kind
from ..pieces import OUTPUT, Module

__all__ = ["ALWAYS", "ANSWER", "Schedule", "Terms", "chain"]

#: As `Terms.waits`: the module below waits for the message of every batch.
ALWAYS = math.inf

#: What happens when a message has come to a rule that listens.
ANSWER: tuple[Kind, ...] = ("message", "observe")


@dataclass(frozen=True, slots=True)
class Terms:
    """Who waits for what at one interface.

    Attributes:
        forward: the module above works on what the module below made so many steps ago; under 0, with synthetic
            inputs, on a batch that is so many steps newer.
        observe: steps that a message waits before its rule learns from it; of stages, their window.
        credits: the rule gives a gradient when it is asked, as `NoBackprop` does not.
        listens: the rule learns from messages.
        waits: batches for whose message the module below waits, the first so many: 0 for a rule that gives credit at
            once, `ALWAYS` for `TrueGradient`, the warm-up of a `HandOver`.
        supplied: the interface has synthetic inputs.
    """

    forward: int = 0
    observe: int = 0
    credits: bool = True
    listens: bool = True
    waits: float = 0
    supplied: bool = False


@dataclass(frozen=True, slots=True)
class Schedule:
    """A network as far as its timetable goes. Every module and every rule that learns has parameters.

    Attributes:
        modules: in the order in which they finish.
        interfaces: in the order in which the forward pass crosses them.
        steps: how many there are, each with a batch of its own.

    Raises:
        ConfigError: if the interfaces are others than those at which the modules end, or an interface has terms that
            no engine offers.
    """

    modules: tuple[Module, ...]
    interfaces: Mapping[str, Terms]
    steps: int

    def __post_init__(self) -> None:
        ends = sorted(end for module in self.modules for end in module.ends)
        if ends != sorted([*self.interfaces, OUTPUT]):
            raise ConfigError(
                f"the modules end at {ends}, expected the interfaces {sorted(self.interfaces)} and '{OUTPUT}', each once"
            )
        for name, terms in self.interfaces.items():
            if terms.observe < 0 or (terms.forward < 0 and not terms.supplied):
                raise ConfigError(
                    f"interface '{name}' has {terms}: expected numbers of steps from 0; only synthetic inputs let the "
                    "module above be ahead, by a forward lag under 0"
                )
            if terms.supplied and (terms.forward > 0 or terms.waits):
                raise ConfigError(
                    f"interface '{name}' has {terms}: with synthetic inputs nobody waits, neither the module above for "
                    "an activation nor the one below for a message"
                )
            if terms.forward and not self.is_chain:
                raise ConfigError(
                    f"interface '{name}' has a forward lag, expected none where the modules are no chain: two batches "
                    "would meet where branches join"
                )

    @property
    def is_chain(self) -> bool:
        """Is every module fed by exactly the one before it?"""
        fed = [(), *(module.ends for module in self.modules[:-1])]
        return all(m.inputs == below and len(m.ends) == 1 for m, below in zip(self.modules, fed, strict=True))

    def ends_at(self, end: str) -> int:
        """Return the position of the module that ends at an interface, or at the output."""
        return next(k for k, module in enumerate(self.modules) if end in module.ends)

    def consumers(self, interface: str) -> tuple[int, ...]:
        """Return the positions of the modules that an interface feeds."""
        return tuple(k for k, module in enumerate(self.modules) if interface in module.inputs)


def chain(*interfaces: str, steps: int = 1, terms: Terms | None = None) -> Schedule:
    """Return the schedule of modules in a row, each named after the interface at which it ends.

    Args:
        interfaces: from the bottom; the last module ends at the output.
        steps: how many.
        terms: of every interface; None for those of a rule that gives credit at once and hears of it at once.

    >>> " ".join(module.name for module in chain("a", "b").modules)
    'a b output'
    """
    ends = (*interfaces, OUTPUT)
    fed = ((), *((name,) for name in interfaces))
    modules = tuple(Module((end,), inputs, ()) for end, inputs in zip(ends, fed, strict=True))
    return Schedule(modules, dict.fromkeys(interfaces, terms or Terms()), steps)
