"""What a benchmark declares: its parameters, their values by tier, and the module that measures.

Declarations do not load PyTorch, because help and completion must not wait for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..options import Option, option, options_of

__all__ = ["Declaration", "Scope", "batch_sizes", "by_tier", "layers", "methods", "rounds", "widths"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scope:
    """What is measured, and for how long: the parameters that all benchmarks have.

    A benchmark's own scope adds its parameters. A field that is a tuple is a list of values, and every combination is
    measured. An empty tuple says that the network has no such parameter.

    Attributes:
        tier: as recorded; ``custom`` for what is no part of a tier.
        seeds: every seed is measured.
        device: ``cpu`` or ``cuda``.
        threads: CPU threads of each process.
        data_dir: directory of data files, or None.
        methods: what is compared.
        rounds: how often everything is measured.
        seconds: length of a method's turn in a round, about; 0 where none takes turns.
    """

    tier: str = "custom"
    seeds: tuple[int, ...] = (0,)
    device: str = "cpu"
    threads: int = 1
    data_dir: str | None = None
    methods: tuple[str, ...] = ()
    rounds: int = 1
    seconds: float = 0.0


def methods(
    names: Sequence[str],
    usual: Sequence[str] | None = None,
    help: str = "What to measure beside the reference.",
) -> Any:
    """Return the field of the methods: all names, of which the usual ones are measured unless others are named."""
    return option(tuple(names if usual is None else usual), help=help, listed=True, choices=names)


def rounds(help: str = "Rounds in which the methods take turns.") -> Any:
    """Return the field of the number of rounds."""
    return option(help=help, kind=int, least=1)


def widths() -> Any:
    """Return the field of the widths of a network."""
    return option(help="Units or filters of a hidden layer.", flag="--width", kind=int, listed=True, least=1)


def layers(least: int = 2) -> Any:
    """Return the field of the depths of a network."""
    return option(help="Weight layers, the output layer included.", kind=int, listed=True, least=least)


def batch_sizes(least: int = 2) -> Any:
    """Return the field of the batch sizes; BatchNorm needs two examples."""
    return option(help="Examples in a batch.", flag="--batch-size", kind=int, listed=True, least=least)


def by_tier(scope: type[Scope], *tiers: str, **values: Any) -> dict[str, Scope]:
    """Return a scope for each tier.

    Args:
        scope: class of the scopes.
        tiers: names of the tiers; smoke, quick and full unless others are named.
        values: of the scope's fields: a list holds the value of each tier, everything else is that of all.
    """
    found: dict[str, Scope] = {}
    for k, tier in enumerate(tiers or ("smoke", "quick", "full")):
        found[tier] = scope(**{name: v[k] if isinstance(v, list) else v for name, v in values.items()})
    return found


@dataclass(frozen=True, slots=True)
class Declaration:
    """A benchmark, apart from the code that measures.

    Attributes:
        name: as the command line has it.
        about: one line for lists.
        module: module of this package that has the measuring code as ``BENCHMARK``; where networks have modules of their
            own, ``{arch}`` stands for the network's name.
        tiers: the scope of each tier.
        networks: the tiers of each value of ``--arch`` that has tiers of its own; the first are `tiers`.
        examples: what follows ``synthgrad bench NAME`` in the help.
        cpu_only: whether ``cuda`` is no device of this benchmark.
    """

    name: str
    about: str
    module: str
    tiers: Mapping[str, Scope]
    networks: Mapping[str, Mapping[str, Scope]] = field(default_factory=dict[str, Mapping[str, Scope]])
    examples: Sequence[str] = ("",)
    cpu_only: bool = False

    @property
    def options(self) -> dict[str, Option]:
        """The benchmark's options by the name of their field, in the order in which its scope declares them."""
        scope = type(next(iter(self.tiers.values())))
        found = options_of(scope)
        return {name: found[name] for name in scope.__annotations__ if name in found}

    def flag(self, name: str) -> str:
        """Return the name of an option on the command line."""
        return self.options[name].flag or f"--{name.replace('_', '-')}"
