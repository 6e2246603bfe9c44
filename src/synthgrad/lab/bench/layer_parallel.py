"""``bench layer-parallel``: the time of a step over depth, all layers in one batch, beside backpropagation.

Peers are hand-written loops of backpropagation: eager, compiled as a whole, and, on CUDA, compiled and captured in a
graph. All take turns; the ratio is taken in each round to the fastest of them. Beside it stands what the machine could
do at best, and, if asked for, when a network of that size has learned MNIST.

``layer_parallel_general`` is the same engine without the step that is written out by hand, so that what this gains can be
measured. It computes the same numbers, so its learning is not timed again, and it is measured in the full tier or when it
is named, for it answers no question of those who do not work on that step.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from ...core import ConfigError, decouple
from ...engines import LayerParallel
from ...rules import SyntheticGradient
from ..tasks import cut_names, fully_connected, load
from .base import Size
from .batches import CLASSES, DATA, Batches, check_batch_sizes, digits
from .declarations import LAYER_PARALLEL, LAYER_PARALLEL_METHODS, LayerParallelScope
from .learning import time_to_accuracy
from .roofline import dense_work, measure_machine
from .steps import hand_written
from .turns import TimedStep, TurnsBench

__all__ = ["BENCHMARK", "LayerCase", "LayerParallelBench"]

_LR = 3e-4
#: Steps in which an accuracy is to be reached, by schedule; otherwise those of ``compare``.
_LEARNING_STEPS = {"quick": 30_000, "full": 100_000}
_LEARNING_EVAL = 500


@dataclass(frozen=True, slots=True)
class LayerCase:
    """What a line measures.

    Attributes:
        method: one of the benchmark's.
        compiled: by ``torch.compile``.
    """

    method: str
    compiled: bool

    @property
    def is_ours(self) -> bool:
        """Whether it is the layer-parallel engine."""
        return self.method.startswith("layer_parallel")

    @property
    def is_general(self) -> bool:
        """Whether it is the engine without the step that is written out."""
        return self.method == "layer_parallel_general"


class LayerParallelBench(TurnsBench[LayerParallelScope, Size, LayerCase]):
    """Fully connected networks on embedded digits, Adam (fused); cDNI with a linear ``M`` after every hidden layer."""

    declared = LAYER_PARALLEL
    compared_with = "best_backprop"
    no_reference = "no loop of backpropagation, to which it is compared, could be measured"

    def check(self, scope: LayerParallelScope) -> None:
        if scope.methods == ("backprop_cudagraph",) and scope.device != "cuda":
            raise ConfigError("method 'backprop_cudagraph' needs --device cuda; name another")
        if scope.learn:
            load(_learning_data(scope), Path(scope.data_dir) if scope.data_dir else None)  # or nothing at all
        check_batch_sizes(scope.batch_sizes)

    def cases(self, scope: LayerParallelScope, size: Size) -> Sequence[LayerCase]:
        """Return eager backpropagation first, then what the scope names."""
        modes = [mode == "compiled" for mode in scope.modes]
        found = [LayerCase("backprop_eager", compiled=False)]
        for method in LAYER_PARALLEL_METHODS:
            if method not in scope.methods or (method == "backprop_cudagraph" and scope.device != "cuda"):
                continue
            if method.startswith("layer_parallel"):
                found += [LayerCase(method, compiled) for compiled in modes]
            elif method != "backprop_eager" and True in modes:
                found.append(LayerCase(method, compiled=True))
        return found

    def cell(self, scope: LayerParallelScope, size: Size, case: LayerCase) -> Mapping[str, Any]:
        return {
            "width": size.width,
            "layers": size.layers,
            "batch_size": size.batch_size,
            "threads": scope.threads,
            "compiled": case.compiled,
        }

    def config(self, scope: LayerParallelScope, size: Size, case: LayerCase) -> Mapping[str, Any]:
        found: dict[str, Any] = {"seconds": scope.seconds}
        if scope.learn and not case.is_general:
            found["learn"] = f"{scope.schedule}, {_learning_data(scope)}"
            if scope.schedule in _LEARNING_STEPS:
                found["learning_steps"] = _LEARNING_STEPS[scope.schedule]
        return found | ({"rule": "cdni, linear M"} if case.is_ours else {})

    def label(self, scope: LayerParallelScope, size: Size) -> str:
        return f"{size.layers} layers × {size.width}, batch {size.batch_size}, {scope.threads} threads"

    def material(self, scope: LayerParallelScope, size: Size, cases: Sequence[LayerCase]) -> Batches:
        torch.compiler.reset()  # or graphs of other sizes would count against the limit of recompilations
        return digits(size.batch_size, size.seed, scope.device)

    def step(
        self, scope: LayerParallelScope, size: Size, case: LayerCase, material: Batches
    ) -> Callable[[], object]:
        step = make_step(case, size, material)
        for _ in range(size.layers + 2):  # until a batch has reached every layer
            step()
        return step

    def reference(self, cases: Sequence[LayerCase], timed: Mapping[LayerCase, TimedStep]) -> TimedStep | None:
        peers = [turn for case, turn in timed.items() if not case.is_ours]
        return min(peers, key=lambda turn: median(turn.times_ms), default=None)

    def more(
        self,
        scope: LayerParallelScope,
        size: Size,
        case: LayerCase,
        material: Batches,
        metrics: Mapping[str, Any],
    ) -> Mapping[str, Any]:
        found = _roofline(case, size, material[0][0], metrics["step_ms_median"])
        return found | (_learned(case, size, scope) if scope.learn and not case.is_general else {})


def make_step(case: LayerCase, size: Size, batches: Batches) -> Callable[[], object]:
    """Return a step as a function without arguments; every call takes the next batch."""
    feed = itertools.cycle(batches)
    x = batches[0][0]
    with torch.random.fork_rng():
        torch.manual_seed(size.seed)
        model = fully_connected(x.shape[1:], CLASSES, size.layers, size.width).to(x.device)
        if case.is_ours:
            net = decouple(
                model, cut_names(model), SyntheticGradient(context=CLASSES, learned_table=True), x[:2]
            )
            fused = False if case.is_general else None
            engine = LayerParallel(net, nn.CrossEntropyLoss(), _adam, fused=fused, compile=case.compiled)
            return lambda: engine.step(*next(feed))
    graph = {"triton.cudagraphs": True} if case.method == "backprop_cudagraph" else None
    return hand_written(model, feed, compiled=case.compiled, options=graph)


def _learning_data(scope: LayerParallelScope) -> str:
    return DATA if scope.schedule == "smoke" else "mnist"


def _learned(case: LayerCase, size: Size, scope: LayerParallelScope) -> dict[str, Any]:
    steps = _LEARNING_STEPS.get(scope.schedule)
    return time_to_accuracy(
        scope,
        size,
        scope.schedule,
        data=_learning_data(scope),
        method="cdni" if case.is_ours else "backprop",
        engine="layer-parallel",
        compiled=case.compiled,
        # Small batches see little of the data in the usual number of steps.
        steps=None if steps is None else (steps, _LEARNING_EVAL),
    )


def _adam(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, _LR, fused=True)


def _roofline(case: LayerCase, size: Size, x: Tensor, step_ms: float) -> dict[str, Any]:
    """Return what the step must do, what the machine can, and how far the one is from the other."""
    work = dense_work(x[0].numel(), CLASSES, size.layers, size.width, size.batch_size, decoupled=case.is_ours)
    machine = measure_machine(x.device.type, torch.get_num_threads(), work.moved_bytes)
    least_ms = machine.least_ms(work)
    return {
        "roofline_ms": least_ms,
        "ratio_to_roofline": step_ms / least_ms,
        "flop": work.flop,
        "moved_bytes": work.moved_bytes,
        "peak_flop_per_s": machine.flop_per_s,
        "peak_bytes_per_s": machine.bytes_per_s,
    }


BENCHMARK = LayerParallelBench()
