"""The main job: the same network trained by several methods on one data set (Bisong 2017)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..core import ConfigError
from ..tasks import DATASETS
from .config import Cell, RunConfig, Schedule
from .methods import method_named

__all__ = ["METHODS", "TIERS", "Overrides", "configs"]

TIERS = ("smoke", "quick", "full")

#: Methods that are compared unless others are named.
METHODS = ("backprop", "no_bprop", "dni", "cdni")

# The paper's schedule (DNI §3.1): 500,000 steps, learning rate divided by 10 at 300,000 and 400,000.
_FULL = Schedule(steps=500_000, lr=3e-5, eval_every=5000)
_SCHEDULES: dict[str, dict[str, Schedule]] = {
    "mnist-10k": {
        "smoke": Schedule(steps=300, lr=1e-3, eval_every=50),
        "quick": Schedule(steps=1500, lr=1e-3, eval_every=100),
        "full": _FULL,
    },
    "mnist": {
        "smoke": Schedule(steps=300, lr=1e-3, eval_every=50),
        "quick": Schedule(steps=6000, eval_every=250),
        "full": _FULL,
    },
    "cifar10": {
        "smoke": Schedule(steps=100, lr=1e-3, eval_every=25),
        "quick": Schedule(steps=6000, eval_every=250),
        "full": _FULL,
    },
}
#: Errors in percent whose first crossing is timed: within reach of backpropagation in the quick tier.
_TARGETS = {"mnist-10k": 8.0, "mnist": 3.0, "cifar10": 55.0}
#: Hidden units or filters of the paper's networks (DNI §3.1).
_WIDTHS = {"fcn": {"cifar10": 1000, "": 256}, "cnn": {"cifar10": 128, "": 64}}


@dataclass(frozen=True, slots=True)
class Overrides:
    """What a user sets in place of a tier's settings; None keeps the tier's.

    ``arch``, ``layers``, ``width``, ``model``, ``at`` and ``engine`` choose the cell of the table, ``precision``
    and ``compiled`` how it is computed; the others make the run one of tier ``custom``.
    """

    arch: str = "fcn"
    layers: int | None = None
    width: int | None = None
    model: str | None = None
    at: tuple[str, ...] = ()
    engine: str = "in-process"
    steps: int | None = None
    batch_size: int | None = None
    lr: float | None = None
    update_prob: float | None = None
    precision: str = "float32"
    compiled: bool = False
    augment: bool = False

    @property
    def custom(self) -> bool:
        """Do these settings leave the tier?"""
        return self.augment or any(
            v is not None for v in (self.steps, self.batch_size, self.lr, self.update_prob)
        )


def configs(
    tier: str = "quick",
    data: str = "mnist-10k",
    methods: Sequence[str] = METHODS,
    seeds: Sequence[int] = (0,),
    overrides: Overrides | None = None,
    device: str = "cpu",
    data_dir: str | None = None,
) -> list[RunConfig]:
    """Return the runs of a comparison, seed by seed, so that a stopped one has all methods of some seeds.

    Raises:
        ConfigError: if a name is unknown or a number out of its range.
    """
    over = overrides or Overrides()
    if tier not in TIERS:
        raise ConfigError(f"tier '{tier}' is unknown; accepted: {', '.join(TIERS)}")
    if data not in DATASETS:
        raise ConfigError(f"data set '{data}' is unknown; accepted: {', '.join(DATASETS)}")
    if over.engine not in ("in-process", "plain"):
        raise ConfigError(f"engine '{over.engine}' is unknown; accepted: in-process, plain")
    known = [method_named(name) for name in methods]
    if not known:
        raise ConfigError(f"no method is named; name some of {', '.join(METHODS)}")
    cell = _cell(data, over)
    schedule = _schedule(tier, data, over)
    return [
        RunConfig(
            "compare",
            "custom" if over.custom else tier,
            method.name,
            seed,
            # Locked training has no modules to skip: every method of a table is listed under its own.
            cell if method.rule is not None else replace(cell, update_prob=1.0, engine="plain", at=()),
            schedule,
            method.settings(data),
            target_error_pct=_TARGETS[data],
            device=device,
            precision=over.precision,
            compiled=over.compiled,
            augment=over.augment,
            data_dir=data_dir,
        )
        for seed in seeds
        for method in known
    ]


def _cell(data: str, over: Overrides) -> Cell:
    prob = 1.0 if over.update_prob is None else over.update_prob
    if prob != 1 and over.engine == "plain":
        raise ConfigError(
            f"update probability {prob}: the plain engine skips no updates; use the in-process engine"
        )
    if over.model is not None:
        module, _, factory = over.model.partition(":")
        if not module or not factory:
            raise ConfigError(f"--model {over.model}: expected package.module:factory")
        if over.layers is not None or over.width is not None or over.arch != "fcn":
            raise ConfigError(
                "--model is given together with --arch, --layers or --width; its factory decides these"
            )
        return Cell(data, over.model, None, None, over.at, prob, over.engine)
    if over.arch not in _WIDTHS:
        raise ConfigError(f"network '{over.arch}' is unknown; accepted: {', '.join(_WIDTHS)}")
    layers = 4 if over.layers is None else over.layers
    usual = _WIDTHS[over.arch]
    width = usual.get(data, usual[""]) if over.width is None else over.width
    return Cell(data, over.arch, layers, width, over.at, prob, over.engine)


def _schedule(tier: str, data: str, over: Overrides) -> Schedule:
    schedule = _SCHEDULES[data][tier]
    steps = schedule.steps if over.steps is None else over.steps
    return replace(
        schedule,
        steps=steps,
        batch_size=schedule.batch_size if over.batch_size is None else over.batch_size,
        lr=schedule.lr if over.lr is None else over.lr,
        # As many evaluations as the tier makes, whatever the number of steps.
        eval_every=max(1, schedule.eval_every * max(steps, 0) // schedule.steps)
        if over.steps
        else schedule.eval_every,
    )
