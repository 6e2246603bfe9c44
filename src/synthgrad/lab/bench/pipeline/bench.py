"""``bench pipeline``: stages that wait for no gradient, beside backpropagation, data parallel training and pipelines.

All train the same network on the same batches in as many processes of as many threads, and take turns in one run. Of
each schedule several numbers of microbatches are measured, and the best is marked.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ....core import ConfigError
from ....core.errors import DataError
from ...tasks import load
from ...tasks.gpt import gpt
from ...wan import Link, parse_link, unavailable_reason
from ..base import Bench, Figures
from ..declarations import PIPELINE, PipelineScope
from .cases import Case, cases_of
from .learn import Goal, goal_of
from .network import Size
from .ours import RULES
from .slow import check_slow, parse_slow
from .timing import LR, OTHER_LR, measure
from .to_loss import loss_runs

__all__ = ["BENCHMARK", "PipelineBench"]

_TRAIN_SIZE = 10_000  # of the embedded digits, on which steps are timed
_MOST_STAGES = 16
#: As records have them, beside the usual one.
_OPTIMIZERS = {"adamw": "AdamW", "muon": "Muon"}


@dataclass(frozen=True, slots=True)
class PipelineSize:
    """What is measured in one run.

    Attributes:
        size: of what is trained.
        link: what is emulated between the processes; None for the loopback device.
        goal: what is trained to; None for nothing.
    """

    size: Size
    link: Link | None
    goal: Goal | None

    @property
    def seed(self) -> int:
        """The seed of weights and data."""
        return self.size.seed


class PipelineBench(Bench[PipelineScope, PipelineSize, Case]):
    """Fully connected networks on digits, over gloo on CPUs; stages have cDNI with a linear ``M`` or a local loss."""

    declared = PIPELINE
    axes = {
        **{"seed": "seeds", "stages": "stages", "width": "widths"},
        **{"layers": "layers", "batch_size": "batch_sizes"},
    }

    def check(self, scope: PipelineScope) -> None:
        what, part = ("blocks", "block") if scope.arch == "gpt" else ("layers", "hidden layer")
        for stages, layers in itertools.product(scope.stages, scope.layers):
            if not 2 <= stages <= min(_most_parts(scope.arch, layers), _MOST_STAGES):
                raise ConfigError(
                    f"{stages} stages of {layers} {what}: expected 2 stages or more, at most {_MOST_STAGES}, and a "
                    f"{part} for each; give --stages or --layers that fit"
                )
        self._check_losses(scope)
        if scope.arch == "gpt":
            self._check_gpt(scope)
        if scope.slow is not None:
            for stages in scope.stages:
                check_slow(parse_slow(scope.slow), stages)
            if others := [name for name in scope.methods if not name.startswith("stages")]:
                raise ConfigError(
                    f"--slow with method '{others[0]}': stages that sleep are measured with the methods stages… alone; name "
                    "these with --methods"
                )
        for stages, batch_size in itertools.product(scope.stages, scope.batch_sizes):
            if batch_size % stages or not 2 * stages <= batch_size <= _TRAIN_SIZE:
                raise ConfigError(
                    f"batch size {batch_size} for {stages} stages: expected a multiple of {stages} from {2 * stages} "
                    f"to {_TRAIN_SIZE}, of which data parallel processes have equal shares"
                )
        if scope.link is not None and parse_link(scope.link) and (reason := unavailable_reason()) is not None:
            raise ConfigError(reason)

    @staticmethod
    def _check_losses(scope: PipelineScope) -> None:
        if scope.losses is None:
            if scope.target_bits is not None:
                raise ConfigError(
                    f"--target-bits {scope.target_bits:g} without --losses: give the records of runs that reach it"
                )
        elif scope.arch != "gpt":
            raise ConfigError(
                "--losses is for --arch gpt; a fully connected network learns here, with --learn"
            )
        elif scope.target_bits is not None and not 0 < scope.target_bits < math.inf:
            raise ConfigError(f"--target-bits {scope.target_bits:g}: expected bits per character, above 0")

    def _check_gpt(self, scope: PipelineScope) -> None:
        if scope.learn:
            raise ConfigError(
                "--learn with --arch gpt, whose tokens are random: train it with synthgrad compare --arch gpt, and leave "
                "--learn out"
            )
        for width in scope.widths:
            with torch.device("meta"):
                gpt(1, width=width, blocks=1, heads=scope.heads, context=1)

    def sizes(self, scope: PipelineScope) -> Iterable[PipelineSize]:
        link = None if scope.link is None else parse_link(scope.link)
        goal = goal_of(scope.schedule, _learning_data(scope)) if scope.learn else None
        for values in itertools.product(*(getattr(scope, name) for name in self.axes.values())):
            of_gpt = {"heads": scope.heads, "context": scope.context} if scope.arch == "gpt" else {}
            slow = parse_slow(scope.slow) if scope.slow is not None else {}
            stages = dict(zip(self.axes, values, strict=True))["stages"]
            size = Size(
                threads=scope.threads,
                **dict(zip(self.axes, values, strict=True)),
                arch=scope.arch,
                precision=scope.precision,
                optimizer=scope.optimizer,
                cuts=scope.cuts,
                slow=tuple(slow.get(k, 1.0) for k in range(stages)) if slow else (),
                **of_gpt,
            )
            yield PipelineSize(size, link, goal)

    def cases(self, scope: PipelineScope, size: PipelineSize) -> Sequence[Case]:
        layers, stages, batch_size = size.size.layers, size.size.stages, size.size.batch_size
        found = cases_of(scope.methods, stages, _most_parts(scope.arch, layers), batch_size)
        if not {case.method for case in found} & {*scope.methods}:
            raise ConfigError(
                f"none of {', '.join(scope.methods)} can be measured with {layers} layers, {stages} stages and batches "
                f"of {batch_size}: schedules need an even batch, and zero_bubble two layers or blocks in each; give these, "
                "or name other methods"
            )
        if scope.losses is not None:
            loss_runs(scope.losses, found, size.size, scope.target_bits)  # before anything is measured
        return found

    def cell(self, scope: PipelineScope, size: PipelineSize, case: Case) -> Mapping[str, Any]:
        made, link = size.size, size.link
        of_gpt = {"arch": "gpt", "heads": made.heads, "context": made.context} if made.arch == "gpt" else {}
        unusual = {} if made.precision == "float32" else {"precision": made.precision}
        unusual |= {} if made.optimizer == "adam" else {"optimizer": made.optimizer}
        unusual |= {"slow": [*made.slow]} if made.slow else {}
        unusual |= {"cuts": made.cuts} if made.cuts != "equal" else {}
        return {
            **of_gpt,
            **unusual,
            "width": made.width,
            "layers": made.layers,
            "batch_size": made.batch_size,
            "stages": made.stages,
            "threads": made.threads,
            "microbatches": case.microbatches,
            "variant": case.variant,
            "observe_prob": case.observe_prob,
            "window": _window(case, made.stages),
            "wire_dtype": case.wire_dtype,
            "link": "loopback" if link is None else "emulated",
            "rtt_ms": 0.0 if link is None else link.rtt_ms,
            "mbit_s": None if link is None else link.mbit_s,
            **_unusual(link),
            "lr": LR,
        }

    def config(self, scope: PipelineScope, size: PipelineSize, case: Case) -> Mapping[str, Any]:
        found: dict[str, Any] = {"backend": "gloo", "seconds": scope.seconds}
        if scope.optimizer != "adam":
            found["optimizer"] = _OPTIMIZERS[scope.optimizer]
        if case.is_ours:
            found["rule"] = RULES[case.rule]
        if scope.losses is not None:
            found |= {"losses": scope.losses, "target_bits": scope.target_bits}
        if (goal := size.goal) is not None:
            found["learn"] = f"{goal.accuracy_pct:g} % on {goal.data} in {goal.most_steps} steps"
            found["other_lr"] = None if case.is_ours or case.is_bound else OTHER_LR
        return found

    def label(self, scope: PipelineScope, size: PipelineSize) -> str:
        made, link = size.size, size.link
        over = "loopback" if link is None else link.words
        what = "blocks" if made.arch == "gpt" else "layers"
        return (
            f"{made.layers} {what} × {made.width}, batch {made.batch_size}, "
            f"{made.stages} stages of {made.threads} threads, {over}"
        )

    def measure(self, scope: PipelineScope, size: PipelineSize, cases: Sequence[Case]) -> Iterator[Figures]:
        losses = (
            None if scope.losses is None else loss_runs(scope.losses, cases, size.size, scope.target_bits)
        )
        metrics, failed = measure(
            cases,
            size.size,
            link=size.link,
            rounds=scope.rounds,
            seconds=scope.seconds,
            goal=size.goal,
            data_dir=scope.data_dir,
        )
        for case in cases:
            found = metrics.get(case, {})
            to_loss = {} if losses is None or not found else losses.times(case, found)
            yield Figures(found | to_loss, failed.get(case))


def _window(case: Case, stages: int) -> int | str | None:
    """Return how many steps a stage waits at the most, in words if that follows from the link; None for other methods."""
    if not case.is_ours:
        return None
    found = case.window(stages)
    return "follows the link" if found is None else found


def _unusual(link: Link | None) -> dict[str, float]:
    """Return what a cell holds of a link with unequal directions, or with jitter."""
    found = {} if link is None else {"down_mbit_s": link.down_mbit_s, "jitter_ms": link.jitter_ms or None}
    return {name: value for name, value in found.items() if value is not None}


def _most_parts(arch: str, layers: int) -> int:
    """Return into how many parts a network can be divided, a block or a hidden layer in each."""
    return layers if arch == "gpt" else layers - 1


def _learning_data(scope: PipelineScope) -> str:
    """Return the data set that is learned: MNIST, or, where there is none, the part of it that is embedded."""
    if scope.schedule == "smoke":
        return "mnist-10k"
    try:
        load("mnist", Path(scope.data_dir) if scope.data_dir else None)
    except DataError:
        return "mnist-10k"
    return "mnist"


BENCHMARK = PipelineBench()
