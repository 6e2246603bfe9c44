"""The main job: the same network trained by several methods on one data set (Bisong 2017)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ...core import ConfigError
from ..tasks import DATASETS
from .config import ENGINES, Cell, RuleSettings, RunConfig, Schedule
from .feed_forward import FULL, WIDTHS, one_run, width_of
from .methods import Method, method_named

__all__ = ["METHODS", "TIERS", "Overrides", "budgets", "configs"]

TIERS = ("smoke", "quick", "full")

#: Methods that are compared unless others are named.
METHODS = ("backprop", "no_bprop", "dni", "cdni")

_SCHEDULES: dict[str, dict[str, Schedule]] = {
    "mnist-10k": {
        "smoke": Schedule(steps=300, lr=1e-3, eval_every=50),
        "quick": Schedule(steps=1500, lr=1e-3, eval_every=100),
        "full": FULL,
    },
    "mnist": {
        "smoke": Schedule(steps=300, lr=1e-3, eval_every=50),
        "quick": Schedule(steps=6000, eval_every=250),
        "full": FULL,
    },
    "cifar10": {
        "smoke": Schedule(steps=100, lr=1e-3, eval_every=25),
        "quick": Schedule(steps=6000, eval_every=250),
        "full": FULL,
    },
}
#: Steps of each budget of the experiment, and the update probabilities at each: unlocked methods have both.
_BUDGETS = {"smoke": (40, 120), "quick": (1000, 3000, 6000), "full": (100_000, 300_000, 500_000)}
_PROBS = (1.0, 0.2)


@dataclass(frozen=True, slots=True)
class Overrides:
    """What a user sets in place of a tier's settings; None keeps the tier's.

    ``arch``, ``layers``, ``width``, ``model``, ``at`` and ``engine`` choose the cell of the table, ``precision``
    and ``compiled`` how it is computed; the others make the run one of tier ``custom``. Several numbers of
    ``steps`` are as many budgets: every method is trained anew for each.
    """

    arch: str = "fcn"
    layers: int | None = None
    width: int | None = None
    model: str | None = None
    at: tuple[str, ...] = ()
    engine: str = "in-process"
    steps: int | tuple[int, ...] | None = None
    batch_size: int | None = None
    lr: float | None = None
    update_prob: float | None = None
    precision: str = "float32"
    compiled: bool = False
    augment: bool = False
    warm_up: int | None = None
    freeze_after: int | None = None
    min_cosine: float | None = None

    @property
    def hand_over(self) -> dict[str, float]:
        """Settings of a hand-over from backpropagation, as far as they are given."""
        names = ("warm_up", "freeze_after", "min_cosine")
        return {name: value for name in names if (value := getattr(self, name)) is not None}

    @property
    def custom(self) -> bool:
        """Do these settings leave the tier?"""
        numbers = (self.steps, self.batch_size, self.lr, self.update_prob)
        return self.augment or bool(self.hand_over) or any(v is not None for v in numbers)

    def settings(self, method: Method, cell: Cell) -> RuleSettings:
        """Return the settings of a method's rule."""
        return replace(
            method.settings(cell.data, cell.arch), **({} if method.rule is None else self.hand_over)
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
    if over.engine not in ENGINES:
        raise ConfigError(f"engine '{over.engine}' is unknown; accepted: {', '.join(ENGINES)}")
    known = [method_named(name) for name in methods]
    if not known:
        raise ConfigError(f"no method is named; name some of {', '.join(METHODS)}")
    cell = _cell(data, over)
    label = "custom" if over.custom else tier
    return [
        one_run(
            "compare",
            label,
            method.name,
            seed,
            # As in the papers, the reference makes every update: all methods are held against the same run.
            cell if method.rule is not None else replace(cell, update_prob=1.0),
            schedule,
            over.settings(method, cell),
            device=device,
            precision=over.precision,
            compiled=over.compiled,
            augment=over.augment,
            data_dir=data_dir,
        )
        for seed in seeds
        for schedule in _schedules(tier, data, over)
        for method in known
    ]


def budgets(tier: str, seeds: Sequence[int], device: str, data_dir: str | None) -> list[RunConfig]:
    """Return the runs of the whole experiment: several budgets, each with every update and with one in five.

    A budget has a schedule of its own, whose learning rate falls at the same shares of it. The longest of the
    quick and full tiers is the run that `configs` makes.
    """
    data = "mnist-10k" if tier == "smoke" else "mnist"
    return [
        one_run("compare", tier, method, seed, _cell(data, over), schedule, device=device, data_dir=data_dir)
        for seed in seeds
        for schedule in _schedules(tier, data, Overrides(steps=_BUDGETS[tier]))
        for over in (Overrides(update_prob=prob) for prob in _PROBS)
        for method in METHODS
        if over.update_prob == 1 or method != "backprop"
    ]


def _cell(data: str, over: Overrides) -> Cell:
    prob = 1.0 if over.update_prob is None else over.update_prob
    if prob != 1 and over.engine != "in-process":
        raise ConfigError(
            f"update probability {prob}: the {over.engine} engine skips no updates; use the in-process engine"
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
    if over.arch not in WIDTHS:
        raise ConfigError(f"network '{over.arch}' is unknown; accepted: {', '.join(WIDTHS)}")
    layers = 4 if over.layers is None else over.layers
    width = width_of(over.arch, data) if over.width is None else over.width
    return Cell(data, over.arch, layers, width, over.at, prob, over.engine)


def _schedules(tier: str, data: str, over: Overrides) -> list[Schedule]:
    """Return a schedule for each budget, with as many evaluations as the tier makes, whatever its steps."""
    usual = _SCHEDULES[data][tier]
    given = usual.steps if over.steps is None else over.steps
    return [
        replace(
            usual,
            steps=steps,
            batch_size=usual.batch_size if over.batch_size is None else over.batch_size,
            lr=usual.lr if over.lr is None else over.lr,
            eval_every=max(1, usual.eval_every * max(steps, 0) // usual.steps),
        )
        for steps in (given if isinstance(given, tuple) else (given,))
    ]
