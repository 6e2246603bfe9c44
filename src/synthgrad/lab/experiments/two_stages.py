"""A convolutional and a recurrent network on two stages, beside the same in one process: what do they learn?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .config import Cell, RunConfig, Schedule
from .feed_forward import one_run
from .methods import method_named
from .run_config import AnyRun
from .stacks_config import StackCell, StackRun

__all__ = ["METHODS", "TIERS", "configs"]

TIERS = ("smoke", "quick", "full")
METHODS = ("backprop", "cdni")

_ENGINES = ("in-process", "stages")


@dataclass(frozen=True, slots=True)
class _Tier:
    images: Cell
    image_schedule: Schedule
    text: StackCell
    text_schedule: Schedule
    most_valid: int | None
    precision: str = "float32"


_TIERS = {
    "smoke": _Tier(
        Cell("mnist-10k", "cnn", 3, 4, ("layer1",)),
        Schedule(20, 32, lr=3e-3, eval_every=10),
        StackCell("shakespeare-50k", "lstm", 2, 16, 5),
        Schedule(20, 16, lr=3e-3, milestones=(), eval_every=10),
        1_000,
    ),
    "quick": _Tier(
        Cell("cifar10", "cnn", 3, 32, ("layer1",)),
        Schedule(600, 128, lr=1e-3, eval_every=100),
        StackCell("ptb", "lstm", 2, 256, 20),
        Schedule(1000, 64, lr=1e-3, milestones=(), eval_every=100),
        50_000,
        "bfloat16",
    ),
    "full": _Tier(
        Cell("cifar10", "cnn", 3, 128, ("layer1",)),
        Schedule(20_000, 128, lr=1e-3, eval_every=1000),
        StackCell("ptb", "lstm", 2, 1024, 20),
        Schedule(50_000, 128, lr=3e-4, milestones=(), eval_every=1000),
        None,
    ),
}


def configs(tier: str, seeds: Sequence[int], device: str, data_dir: str | None) -> list[AnyRun]:
    """Return the runs, seed by seed: both networks by each method, cut ones in one process and on two stages."""
    return [
        run
        for seed in seeds
        for method in METHODS
        for engine in (_ENGINES if method != "backprop" else ("plain",))
        for run in (
            _images(tier, method, seed, engine, device, data_dir),
            _text(tier, method, seed, engine, device, data_dir),
        )
    ]


def _images(tier: str, method: str, seed: int, engine: str, device: str, data_dir: str | None) -> RunConfig:
    size, own = _TIERS[tier], _TIERS[tier].images
    cell = Cell(own.data, own.arch, own.layers, own.width, own.at, own.update_prob, engine)
    return one_run(
        "two_stages",
        tier,
        method,
        seed,
        cell,
        size.image_schedule,
        device=device,
        data_dir=data_dir,
        precision=size.precision,
    )


def _text(tier: str, method: str, seed: int, engine: str, device: str, data_dir: str | None) -> StackRun:
    size, own = _TIERS[tier], _TIERS[tier].text
    cell = StackCell(own.data, own.arch, own.layers, own.width, own.unroll, engine)
    return StackRun(
        "two_stages",
        tier,
        method,
        seed,
        cell,
        size.text_schedule,
        rule=method_named(method).settings(own.data, own.arch),
        device=device,
        data_dir=data_dir,
        most_valid=size.most_valid,
    )
