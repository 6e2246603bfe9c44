"""``bench pipeline``: stages that wait for no gradient, beside backpropagation, data parallel training and pipelines.

All train the same network on the same batches in as many processes of as many threads, and take turns in one run. Of
each schedule several numbers of microbatches are measured, and the best is marked.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from ....core import ConfigError
from ....core.errors import DataError
from ...records import Record
from ...tasks import load
from ...wan import Link, available, parse_link
from ..base import Scope, Setting, blank_line, finish_line
from .kinds import DEFAULT, METHODS, Kind, kinds_of
from .learn import Goal, goal_of
from .network import Size
from .ours import RULES
from .timing import LR, OTHER_LR, measure

__all__ = ["PipelineBench"]

_TRAIN_SIZE = 10_000  # of the embedded digits, on which steps are timed
_MOST_STAGES = 16


class PipelineBench:
    """Fully connected networks on digits, Adam (fused), over gloo on CPUs; stages have cDNI with a linear ``M`` or a local loss."""

    name = "pipeline"
    about = "throughput of stages over a link, beside backprop, data parallel and pipeline schedules"
    tiers = {
        "smoke": Scope(
            (16,), (5,), (8,), DEFAULT, rounds=2, seconds=0.02, stages=(2,), schedule="smoke", tier="smoke"
        ),
        "quick": Scope((512,), (9,), (256,), DEFAULT, rounds=5, seconds=1.0, stages=(2,), tier="quick"),
        "full": Scope(
            (512,),
            (9,),
            (256, 2048),
            METHODS,
            rounds=7,
            seconds=3.0,
            stages=(2,),
            schedule="full",
            tier="full",
        ),
    }
    networks = {"fcn": tiers}

    def settings(self, scope: Scope) -> list[Setting]:
        """Return one setting for each number of stages, width, depth, batch size and seed.

        Raises:
            ConfigError: if something is asked for that is not measured, or no link can be emulated here.
        """
        _check(scope)
        link = None if scope.link is None else parse_link(scope.link)
        if link is not None and (reason := available()) is not None:
            raise ConfigError(reason)
        goal = goal_of(scope.schedule, _learning_data(scope)) if scope.learn else None
        return [
            self._setting(scope, Size(width, layers, batch_size, stages, scope.threads, seed), link, goal)
            for seed, stages, width, layers, batch_size in itertools.product(
                scope.seeds, scope.stages, scope.widths, scope.layers, scope.batch_sizes
            )
        ]

    def _setting(self, scope: Scope, size: Size, link: Link | None, goal: Goal | None) -> Setting:
        kinds = kinds_of(scope.methods, size.stages, size.layers, size.batch_size)
        if not any(method in {kind.method for kind in kinds} for method in scope.methods):
            raise ConfigError(
                f"none of {', '.join(scope.methods)} can be measured with {size.layers} layers, {size.stages} stages and "
                f"batches of {size.batch_size}: schedules need an even batch, and zero_bubble {2 * size.stages + 1} "
                "layers; give these, or name other methods"
            )
        lines = [self._line(scope, size, link, goal, kind) for kind in kinds]
        over = "loopback" if link is None else f"round trip {link.rtt_ms:g} ms"
        if link is not None and link.mbit_s is not None:
            over += f", {link.mbit_s:g} Mbit/s"
        label = (
            f"pipeline: {size.layers} layers × {size.width}, batch {size.batch_size}, "
            f"{size.stages} stages of {size.threads} threads, {over}"
        )
        return Setting(label, lines, partial(_measure, scope, size, link, goal, kinds, lines))

    def _line(self, scope: Scope, size: Size, link: Link | None, goal: Goal | None, kind: Kind) -> Record:
        cell = {
            "width": size.width,
            "layers": size.layers,
            "batch_size": size.batch_size,
            "stages": size.stages,
            "threads": size.threads,
            "microbatches": kind.microbatches,
            "variant": kind.variant,
            "observe_prob": kind.observe_prob,
            "window": "follows the link" if kind.is_ours else None,
            "wire_dtype": kind.wire_dtype,
            "link": "loopback" if link is None else "emulated",
            "rtt_ms": 0.0 if link is None else link.rtt_ms,
            "mbit_s": None if link is None else link.mbit_s,
            "lr": LR,
        }
        config: dict[str, object] = {"optimizer": "Adam, fused", "backend": "gloo", "seconds": scope.seconds}
        if kind.is_ours:
            config["rule"] = RULES[kind.rule]
        if goal is not None:
            config["learn"] = f"{goal.accuracy_pct:g} % on {goal.data} in {goal.most_steps} steps"
            config["other_lr"] = None if kind.is_ours or kind.is_bound else OTHER_LR
        return blank_line(self.name, kind.method, scope, size.seed, cell, config)


def _check(scope: Scope) -> None:
    for method in scope.methods:
        if method not in METHODS:
            raise ConfigError(
                f"method '{method}' is unknown to bench pipeline; accepted: {', '.join(METHODS)}"
            )
    if scope.device != "cpu":
        raise ConfigError(f"bench pipeline measures processes on CPUs, not {scope.device}; give --device cpu")
    if scope.precision != "float32" or True in scope.compiled:
        raise ConfigError(
            "bench pipeline measures in float32, not compiled; leave out --precision and --modes compiled"
        )
    for stages, layers in itertools.product(scope.stages, scope.layers):
        if not 2 <= stages <= min(layers - 1, _MOST_STAGES):
            raise ConfigError(
                f"{stages} stages of {layers} layers: expected 2 stages or more, at most {_MOST_STAGES}, and a hidden "
                "layer for each; give --stages or --layers that fit"
            )
    for stages, batch_size in itertools.product(scope.stages, scope.batch_sizes):
        if batch_size % stages or not 2 * stages <= batch_size <= _TRAIN_SIZE:
            raise ConfigError(
                f"batch size {batch_size} for {stages} stages: expected a multiple of {stages} from {2 * stages} to "
                f"{_TRAIN_SIZE}, of which data parallel processes have equal shares"
            )


def _learning_data(scope: Scope) -> str:
    """Return the data set that time to an accuracy is measured on: MNIST, or, where there is none, the embedded part."""
    if scope.schedule == "smoke":
        return "mnist-10k"
    try:
        load("mnist", Path(scope.data_dir) if scope.data_dir else None)
    except DataError:
        return "mnist-10k"
    return "mnist"


def _measure(
    scope: Scope,
    size: Size,
    link: Link | None,
    goal: Goal | None,
    kinds: Sequence[Kind],
    lines: Sequence[Record],
) -> Iterator[Record]:
    metrics, failed = measure(
        kinds,
        size,
        link=link,
        rounds=scope.rounds,
        seconds=scope.seconds,
        goal=goal,
        data_dir=scope.data_dir,
    )
    for kind, line in zip(kinds, lines, strict=True):
        yield finish_line(line, scope.device, metrics.get(kind, {}), failed.get(kind))
