"""Experiments as data: an experiment has tiers, a tier has groups of runs, and a group has variants."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ..names import DATA, METHODS, RECURRENT, TEXTS
from ..options import option
from ..training.payloads import ARCHS, Payload
from ..training.run import PRECISIONS, Run
from ..training.settings import Schedule, Settings, refuse

__all__ = ["Choice", "Experiment", "Group", "Variant", "make_run"]


@dataclass(frozen=True, slots=True)
class Variant:
    """A method with settings that differ from those of its group.

    Attributes:
        method: name of the method.
        rule: settings of the rule; None for the group's, or else the method's default settings.
        payload: fields of the payload that replace those of the group.
        schedule: fields of the schedule that replace those of the group.
    """

    method: str
    rule: Settings | None = None
    payload: Mapping[str, Any] = field(default_factory=dict[str, Any])
    schedule: Mapping[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True, slots=True)
class Group:
    """Runs with the same payload and schedule.

    Attributes:
        payload: the network and its data.
        schedule: number of steps, batch size and learning rate.
        variants: the methods; a name stands for a variant without changes.
        rule: settings of the rule for all variants; None for each method's default settings.
        precision: ``float32`` or ``bfloat16``.
    """

    payload: Payload
    schedule: Schedule
    variants: Sequence[Variant | str]
    rule: Settings | None = None
    precision: str = "float32"


#: The groups of a tier, or a function that returns them for a seed.
Tier = Sequence[Group] | Callable[[int], Sequence[Group]]


@dataclass(frozen=True, slots=True)
class Choice:
    """Selects runs of an experiment; None selects all.

    Attributes:
        data, arch, layers, unroll, methods: values that selected runs have.
        precision: precision of all runs, instead of the tier's.
    """

    data: tuple[str, ...] | None = option(
        None,
        "Data sets to keep. Your own, a file or package.module:factory, takes their place; charlm takes any text, by "
        "name or path.",
        listed=True,
        choices=(*DATA, *TEXTS),
        default="all",
    )
    arch: tuple[str, ...] | None = option(
        None, "Networks to keep.", listed=True, choices=ARCHS, default="all"
    )
    layers: tuple[int, ...] | None = option(
        None,
        "Depths to keep: weight layers, the output layer included.",
        kind=int,
        listed=True,
        least=2,
        default="all",
    )
    unroll: tuple[int, ...] | None = option(
        None,
        "Lengths of unrolls to keep, of recurrent networks.",
        kind=int,
        listed=True,
        least=1,
        default="all",
    )
    methods: tuple[str, ...] | None = option(
        None,
        "Methods to keep; table1 takes every one.",
        listed=True,
        choices=tuple(dict.fromkeys((*METHODS, *RECURRENT))),
        default="those of the paper's experiment",
    )
    precision: str | None = option(
        None, "Precision of the arithmetic.", choices=PRECISIONS, default="the tier's"
    )


#: Returns a run's value for each field of `Choice`.
_VALUE_OF: dict[str, Callable[[Run], Any]] = {
    "data": lambda run: run.payload.data,
    "arch": lambda run: run.payload.arch,
    "layers": lambda run: run.payload.layers,
    "methods": lambda run: run.method,
    "unroll": lambda run: getattr(run.payload, "unroll", None),
}


@dataclass(frozen=True, slots=True)
class Experiment:
    """An experiment. Its module declares it as ``EXPERIMENT`` and gives it its name.

    Attributes:
        about: description in one line for ``synthgrad list``.
        tiers: the groups of each tier.
        methods: methods to run by default; None for all.
        name: name of the module; do not set it.
        recorded_as: name in records; empty for the module's name.
    """

    about: str
    tiers: Mapping[str, Tier]
    methods: tuple[str, ...] | None = None
    name: str = ""
    recorded_as: str = ""

    def runs(
        self,
        tier: str,
        seeds: Sequence[int] = (0,),
        device: str = "cpu",
        data_dir: str | None = None,
        choice: Choice | None = None,
    ) -> list[Run]:
        """Return the selected runs of a tier, seed by seed.

        Args:
            tier: name of the tier.
            seeds: seeds of the runs.
            device: ``cpu`` or ``cuda``.
            data_dir: directory of data files, or None.
            choice: the selection; None for all runs.

        Raises:
            ConfigError: if there is no such tier, or the choice names a value that no run has.
        """
        if tier not in self.tiers:
            refuse(f"experiment '{self.name}' has no tier '{tier}'; accepted: {', '.join(self.tiers)}")
        runs = [run for seed in seeds for run in self._of_seed(tier, seed, device, data_dir)]
        return self._select(runs, tier, choice or Choice())

    def _of_seed(self, tier: str, seed: int, device: str, data_dir: str | None) -> Iterator[Run]:
        groups = self.tiers[tier]
        for group in groups(seed) if callable(groups) else groups:
            for entry in group.variants:
                variant = Variant(entry) if isinstance(entry, str) else entry
                run = make_run(self.recorded_as or self.name, tier, seed, group, variant)
                yield replace(run, device=device, data_dir=data_dir)

    def _select(self, runs: Sequence[Run], tier: str, choice: Choice) -> list[Run]:
        runs = self._add_own_data(runs, choice.data)
        wanted = {name: getattr(choice, name) for name in _VALUE_OF}
        for name, values in wanted.items():
            has = [v for v in dict.fromkeys(map(_VALUE_OF[name], runs)) if v is not None]
            if missing := [str(value) for value in values or () if value not in has]:
                refuse(
                    f"--{name} {','.join(missing)}: experiment '{self.name}', tier '{tier}', has "
                    f"{', '.join(map(str, has)) or 'none'}; choose from these, or leave out --{name}"
                )
        wanted["methods"] = wanted["methods"] or self.methods
        kept = [
            run
            for run in runs
            if all(values is None or _VALUE_OF[name](run) in values for name, values in wanted.items())
        ]
        if not kept:
            cells = dict.fromkeys(
                f"{run.payload.data} {run.payload.arch} {_VALUE_OF['layers'](run)} layers" for run in runs
            )
            refuse(
                f"experiment '{self.name}', tier '{tier}', has no run with all these values; it has {'; '.join(cells)}"
            )
        return kept if choice.precision is None else [replace(r, precision=choice.precision) for r in kept]

    @staticmethod
    def _add_own_data(runs: Sequence[Run], names: tuple[str, ...] | None) -> list[Run]:
        """Return the runs, and before them the same runs on the user's own data sets."""
        has = {run.payload.data for run in runs}
        made: dict[Run, None] = {}
        for name in names or ():
            for run in runs if name not in has else ():
                payload = run.payload.with_data(name)
                if payload is not None:
                    made[replace(run, payload=payload)] = None
        return [*made, *runs]


def make_run(experiment: str, tier: str, seed: int, group: Group, variant: Variant) -> Run:
    """Return the run of a variant.

    Raises:
        ConfigError: if there is no such method, or a value is out of range.
    """
    payload = replace(group.payload, **variant.payload) if variant.payload else group.payload
    schedule = replace(group.schedule, **variant.schedule) if variant.schedule else group.schedule
    rule = variant.rule or group.rule or payload.default_rule(variant.method)
    payload = payload.for_method(variant.method)
    return Run(experiment, tier, variant.method, seed, payload, schedule, rule, group.precision)
