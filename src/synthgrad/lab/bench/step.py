"""``bench step``: the time of a training step of every method over that of a hand-written loop.

The loop is of the same network, precision and memory layout. Methods take turns: in every round each one runs some
steps on the same batches, and its ratio is taken to the eager hand-written loop of the same round, so that a machine
that slows down slows both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from ...core import ConfigError
from ..training.methods import METHODS, method_named
from ..training.settings import RuleSettings
from .base import Size
from .batches import DATA, Batches, check_batch_sizes, digits, noise
from .declarations import STEP, StepScope
from .learning import time_to_accuracy
from .steps import HAND_WRITTEN, Network, StepCase, make_step
from .turns import TurnsBench

__all__ = ["BENCHMARK", "StepBench"]


class StepBench(TurnsBench[StepScope, Size, StepCase]):
    """Steps of a network, Adam (fused): fully connected on embedded digits, linear ``M``, or convolutional.

    A convolutional network takes images of noise of the size of CIFAR-10's, and rules have the settings that
    were chosen for those. Beside the hand-written loop its lines have the locked engine's backpropagation.
    """

    declared = STEP

    def methods(self, scope: StepScope) -> Sequence[str]:
        return tuple(METHODS)  # those that users have added too

    def check(self, scope: StepScope) -> None:
        if scope.arch == "fcn":
            check_batch_sizes(scope.batch_sizes)
        elif scope.learn:
            raise ConfigError("bench step trains no convolutional network to an accuracy; leave out --learn")

    def cases(self, scope: StepScope, size: Size) -> Sequence[StepCase]:
        """Return the reference first, then every method as the scope has it."""
        return list(dict.fromkeys(_cases(scope)))

    def cell(self, scope: StepScope, size: Size, case: StepCase) -> Mapping[str, Any]:
        shape = {
            "width": size.width,
            "layers": size.layers,
            "batch_size": size.batch_size,
            "threads": scope.threads,
        }
        made = {"compiled": case.compiled, "engine": case.engine, "update_prob": case.update_prob}
        return {**shape, **_unusual(scope), **made}

    def config(self, scope: StepScope, size: Size, case: StepCase) -> Mapping[str, Any]:
        learn = {"learn": scope.schedule} if scope.learn else {}
        return {"seconds": scope.seconds, **learn, "rule": _rule(_network(scope, size), case.method)}

    def label(self, scope: StepScope, size: Size) -> str:
        parts = [
            f"{size.layers} layers × {size.width}",
            f"batch {size.batch_size}",
            f"{scope.threads} threads",
        ]
        return ", ".join([*parts, *_unusual(scope).values()])

    def material(self, scope: StepScope, size: Size, cases: Sequence[StepCase]) -> Material:
        if any(case.compiled for case in cases):
            torch.compiler.reset()  # or graphs of other widths would count against the limit of recompilations
        make = noise if scope.arch == "cnn" else digits
        return Material(_network(scope, size), make(size.batch_size, size.seed, scope.device))

    def step(self, scope: StepScope, size: Size, case: StepCase, material: Material) -> Callable[[], object]:
        return make_step(case, material.network, material.batches, size.seed)

    def more(
        self, scope: StepScope, size: Size, case: StepCase, material: Material, metrics: Mapping[str, Any]
    ) -> Mapping[str, Any]:
        found: dict[str, Any] = {}
        if case.update_prob == 1:  # one step's count says nothing about a random one
            found["ratio_arithmetic"] = material.flops(case) / material.flops(_REFERENCE)
        if scope.learn and not case.compiled:
            engine = "in-process" if case.engine == HAND_WRITTEN else case.engine
            found |= time_to_accuracy(
                scope,
                size,
                scope.schedule,
                data=DATA,
                method=case.method,
                engine=engine,
                update_prob=case.update_prob,
            )
        return found


_REFERENCE = StepCase("backprop", HAND_WRITTEN)


class Material:
    """What the steps of all methods share.

    Args:
        network: that they train.
        batches: that they take in turn.
    """

    def __init__(self, network: Network, batches: Batches) -> None:
        self.network, self.batches = network, batches
        self._flops: dict[StepCase, int] = {}

    def flops(self, case: StepCase) -> int:
        """Return the operations of the matrix products of a step; a compiled step has those of the eager one."""
        eager = replace(case, compiled=False)
        if eager not in self._flops:
            step = make_step(eager, self.network, self.batches, 0)
            for _ in range(self.network.layers):  # messages that cross interfaces late have come by then
                step()
            with FlopCounterMode(display=False) as counter:
                step()
            self._flops[eager] = counter.get_total_flops()
        return self._flops[eager]


def _network(scope: StepScope, size: Size) -> Network:
    return Network(size.width, size.layers, scope.arch, scope.precision)


def _unusual(scope: StepScope) -> dict[str, str]:
    """Return the parameters that came later: they stand in a line where they are not as they were before."""
    usual = {"arch": "fcn", "precision": "float32"}
    return {name: getattr(scope, name) for name, value in usual.items() if getattr(scope, name) != value}


def _rule(network: Network, method: str) -> str:
    """Return the settings of a method's rule in words."""
    if network.arch == "fcn":
        return "linear M"
    settings = network.settings(method_named(method))
    chosen = [f"{f.name} {getattr(settings, f.name)}" for f in fields(settings)]
    default = [f"{f.name} {getattr(RuleSettings(), f.name)}" for f in fields(settings)]
    return ", ".join(a for a, b in zip(chosen, default, strict=True) if a != b) or "linear"


def _cases(scope: StepScope) -> Iterator[StepCase]:
    yield _REFERENCE
    modes = [mode == "compiled" for mode in scope.modes]
    for name in scope.methods:
        for compiled in modes:
            if method_named(name).rule is None:
                yield StepCase(name, HAND_WRITTEN, compiled=compiled)
                if scope.arch == "cnn":
                    yield StepCase(name, "plain", compiled=compiled)
                continue
            yield StepCase(name, "in-process", compiled=compiled)
            if name == "cdni":
                yield StepCase(name, "plain", compiled=compiled)
        if name == "cdni" and False in modes:
            yield StepCase(name, "in-process", update_prob=0.2)


BENCHMARK = StepBench()
