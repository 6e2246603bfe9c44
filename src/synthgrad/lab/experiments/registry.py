"""The experiments by name. Add one here, it is listed and run; in `cli.names`, it is completed."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ...core import ConfigError
from . import (
    charlm,
    cnn_search,
    compare,
    copy_search,
    copying,
    dni_search,
    lag,
    multinet,
    multinet_search,
    sparse,
    stale,
    table1,
    two_stages,
    unlock,
    unlock_search,
)
from .run_config import AnyRun

__all__ = ["EXPERIMENTS", "Choice", "Experiment", "experiment_named"]

MakeConfigs = Callable[[str, Sequence[int], str, str | None], Sequence[AnyRun]]


@dataclass(frozen=True, slots=True)
class Choice:
    """Which of an experiment's runs are wanted; None for all.

    Attributes:
        data, arch, layers, methods, unroll: keep the runs of these.
        precision: run them in this one, in place of the tier's.
    """

    data: tuple[str, ...] | None = None
    arch: tuple[str, ...] | None = None
    layers: tuple[int, ...] | None = None
    methods: tuple[str, ...] | None = None
    unroll: tuple[int, ...] | None = None
    precision: str | None = None


#: What a run has of each thing that can be chosen.
_VALUE_OF: dict[str, Callable[[AnyRun], Any]] = {
    "data": lambda run: run.cell.data,
    "arch": lambda run: run.cell.arch,
    "layers": lambda run: run.cell.layers,
    "methods": lambda run: run.method,
    "unroll": lambda run: getattr(run.cell, "unroll", None),
}


@dataclass(frozen=True, slots=True)
class Experiment:
    """An experiment.

    Attributes:
        name, about: as listed.
        configs: takes tier, seeds, device and data directory; returns all runs that it has.
        tiers: the tiers that it has.
        methods: those of its methods that are run unless others are named; None for all.
        any_text: does it take any text as data, in place of its own?
    """

    name: str
    about: str
    configs: MakeConfigs
    tiers: tuple[str, ...]
    methods: tuple[str, ...] | None = None
    any_text: bool = False

    def runs(
        self,
        tier: str,
        seeds: Sequence[int],
        device: str,
        data_dir: str | None,
        choice: Choice | None = None,
    ) -> list[AnyRun]:
        """Return the runs that are wanted, in the experiment's order.

        Raises:
            ConfigError: if the choice names what the experiment has not; says what it has.
        """
        choice = choice or Choice()
        runs = self.configs(tier, seeds, device, data_dir)
        if self.any_text and choice.data:
            runs = [replace(run, cell=replace(run.cell, data=name)) for name in choice.data for run in runs]
        wanted = {name: getattr(choice, name) for name in _VALUE_OF}
        for name, values in wanted.items():
            if values is not None:
                has = [v for v in dict.fromkeys(map(_VALUE_OF[name], runs)) if v is not None]
                self._check(name, values, has, tier)
        wanted["methods"] = wanted["methods"] or self.methods
        kept = [
            run
            for run in runs
            if all(values is None or _VALUE_OF[name](run) in values for name, values in wanted.items())
        ]
        if not kept:
            cells = dict.fromkeys(f"{r.cell.data} {r.cell.arch} {r.cell.layers} layers" for r in runs)
            raise ConfigError(
                f"experiment '{self.name}', tier '{tier}': nothing is left of it that was named together; "
                f"it has {'; '.join(cells)}"
            )
        if choice.precision is not None:
            kept = [replace(run, precision=choice.precision) for run in kept]
        return kept

    def _check(self, name: str, values: Collection[Any], has: Sequence[Any], tier: str) -> None:
        if missing := [str(value) for value in values if value not in has]:
            raise ConfigError(
                f"--{name} {','.join(missing)}: experiment '{self.name}', tier '{tier}', has "
                f"{', '.join(map(str, has)) or 'none'}; name some of these or leave out --{name}"
            )


EXPERIMENTS = {
    e.name: e
    for e in (
        Experiment(
            "compare",
            "backprop against decoupled methods on MNIST, several budgets, all updates or one in five (Bisong 2017)",
            compare.budgets,
            compare.TIERS,
        ),
        Experiment(
            "table1",
            "test errors of FCN and CNN on MNIST and CIFAR-10 over depth (DNI, Table 1)",
            table1.configs,
            table1.TIERS,
            table1.METHODS,
        ),
        Experiment(
            "sparse",
            "test error over the probability of an update, at equal updates and equal steps",
            sparse.configs,
            sparse.TIERS,
        ),
        Experiment(
            "stale",
            "stale gradients over decay rates, against DNI and cDNI",
            stale.configs,
            stale.TIERS,
        ),
        Experiment(
            "unlock",
            "complete unlock: synthetic inputs as well as gradients, with and without labels",
            unlock.configs,
            unlock.TIERS,
        ),
        Experiment(
            "copy",
            "how long a sequence is copied, over the length of unrolls (DNI, Copy)",
            copying.copy,
            copying.TIERS,
        ),
        Experiment(
            "repeat_copy",
            "how long a sequence is copied several times, over the length of unrolls (DNI, Repeat Copy)",
            copying.repeat_copy,
            copying.TIERS,
        ),
        Experiment(
            "charlm",
            "bits per character of a language model over the length of unrolls, at one budget of data (DNI, PTB)",
            charlm.configs,
            charlm.TIERS,
            any_text=True,
        ),
        Experiment(
            "multinet",
            "two networks that tick at different rates count digits, locked and with an interface (DNI §3.3)",
            multinet.configs,
            multinet.TIERS,
        ),
        Experiment(
            "two_stages",
            "a convolutional network and a stack of LSTMs on two stages, beside one process",
            two_stages.configs,
            two_stages.TIERS,
        ),
        Experiment(
            "lag",
            "test error over how many steps late the messages come, at one cut",
            lag.configs,
            lag.TIERS,
        ),
        Experiment(
            "dni_search",
            "which M makes unconditioned DNI learn soonest, on held-out data",
            dni_search.configs,
            dni_search.TIERS,
        ),
        Experiment(
            "unlock_search",
            "which input model makes complete unlock learn soonest, on held-out data",
            unlock_search.configs,
            unlock_search.TIERS,
        ),
        Experiment(
            "multinet_search",
            "which rule between networks of different rates learns soonest, on held-out data",
            multinet_search.configs,
            multinet_search.TIERS,
        ),
        Experiment(
            "copy_search",
            "which settings make an LSTM copy the longest sequences, on a seed that judges nothing else",
            copy_search.configs,
            copy_search.TIERS,
        ),
        Experiment(
            "cnn_search",
            "which settings make rules learn a convolutional network soonest, on held-out data",
            cnn_search.configs,
            cnn_search.TIERS,
        ),
    )
}


def experiment_named(name: str, tier: str) -> Experiment:
    """Return an experiment that has the tier.

    Raises:
        ConfigError: if there is none of that name, or it has no such tier.
    """
    if name not in EXPERIMENTS:
        raise ConfigError(f"experiment '{name}' is unknown; accepted: {', '.join(EXPERIMENTS)}")
    experiment = EXPERIMENTS[name]
    if tier not in experiment.tiers:
        raise ConfigError(
            f"experiment '{name}' has no tier '{tier}'; accepted: {', '.join(experiment.tiers)}"
        )
    return experiment
