"""``bench step``: the time of a training step of every method over that of a hand-written loop.

The loop is of the same network, precision and memory layout. Methods take turns: in every round each one runs some steps on the same batches, and its ratio is taken
to the eager hand-written loop of the same round, so that a machine that slows down slows both.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from ...core import ConfigError
from ..recipes import comparison
from ..training.run import PRECISIONS
from ..training.settings import RuleSettings
from ..training.methods import METHODS, method_named
from ..records import Record
from ..tasks import load
from .base import Scope, Setting, blank_line, finish_line
from .learning import time_to_accuracy
from .step_maker import HAND_WRITTEN, Network, StepKind, make_step
from .turns import Turn, ratios, reason_of, take_turns, warmed_up

__all__ = ["StepBench"]

_DATA = "mnist-10k"
_NUM_BATCHES = 16


class StepBench:
    """Steps of a network, Adam (fused): fully connected on embedded digits, linear ``M``, or convolutional.

    A convolutional network takes images of noise of the size of CIFAR-10's, and rules have the settings that
    were chosen for those. Beside the hand-written loop its lines have the locked engine's backpropagation.
    """

    name = "step"
    about = "time of a training step of every method, over a hand-written backprop loop"
    tiers = {
        "smoke": Scope(
            (32,), (3,), (32,), tuple(METHODS), rounds=2, seconds=0.01, schedule="smoke", tier="smoke"
        ),
        "quick": Scope((64, 256), (2, 4, 8), (256,), tuple(METHODS), tier="quick"),
        "full": Scope(
            (64, 256, 1024), (2, 4, 8, 16), (256,), tuple(METHODS), compiled=(False, True), tier="full"
        ),
    }

    networks = {
        "fcn": tiers,
        "cnn": {
            "smoke": Scope(
                (4,),
                (3,),
                (8,),
                tuple(METHODS),
                rounds=2,
                seconds=0.01,
                schedule="smoke",
                tier="smoke",
                arch="cnn",
            ),
            "quick": Scope((32,), (3, 4), (128,), tuple(METHODS), tier="quick", arch="cnn"),
            "full": Scope(
                (32, 128), (3, 4), (256,), tuple(METHODS), compiled=(False, True), tier="full", arch="cnn"
            ),
        },
    }

    def settings(self, scope: Scope) -> list[Setting]:
        """Return one setting for each width, depth, batch size and seed.

        Raises:
            ConfigError: if a method or a precision is unknown, a batch larger than the data, or a network to be
                trained to an accuracy of which no data is at hand.
        """
        kinds = _kinds(scope)
        if scope.precision not in PRECISIONS:
            raise ConfigError(f"precision '{scope.precision}' is unknown; accepted: {', '.join(PRECISIONS)}")
        if scope.arch == "cnn":
            if scope.learn:
                raise ConfigError(
                    "bench step trains no convolutional network to an accuracy; leave out --learn"
                )
        else:
            size = len(load(_DATA).train)
            for batch_size in scope.batch_sizes:
                if batch_size > size:
                    raise ConfigError(f"batch size {batch_size}: expected 1 to {size}")
        return [
            self._setting(scope, kinds, width, layers, batch_size, seed)
            for seed, width, layers, batch_size in itertools.product(
                scope.seeds, scope.widths, scope.layers, scope.batch_sizes
            )
        ]

    def _setting(
        self, scope: Scope, kinds: Sequence[StepKind], width: int, layers: int, batch_size: int, seed: int
    ) -> Setting:
        shape: dict[str, Any] = {
            "width": width,
            "layers": layers,
            "batch_size": batch_size,
            "threads": scope.threads,
        }
        if scope.arch != "fcn":  # later settings stand in a record where they are not the default
            shape["arch"] = scope.arch
        if scope.precision != "float32":
            shape["precision"] = scope.precision
        network = Network(width, layers, scope.arch, scope.precision)
        config: dict[str, Any] = {"optimizer": "Adam, fused", "seconds": scope.seconds}
        if scope.learn:
            config["learn"] = scope.schedule
        lines = [
            blank_line(
                self.name,
                kind.method,
                scope,
                seed,
                {
                    **shape,
                    "compiled": kind.compiled,
                    "engine": kind.engine,
                    "update_prob": kind.update_prob,
                },
                {**config, "rule": _about(network, kind.method)},
            )
            for kind in kinds
        ]
        parts = [f"{layers} layers × {width}", f"batch {batch_size}", f"{scope.threads} threads"]
        parts += [shape[name] for name in ("arch", "precision") if name in shape]
        return Setting(f"step: {', '.join(parts)}", lines, partial(_measure, scope, network, kinds, lines))


def _about(network: Network, method: str) -> str:
    """Return the settings of a rule as a text."""
    if network.arch == "fcn":
        return "linear M"
    settings = network.settings(method_named(method))
    chosen = [f"{f.name} {getattr(settings, f.name)}" for f in fields(settings)]
    default = [f"{f.name} {getattr(RuleSettings(), f.name)}" for f in fields(settings)]
    return ", ".join(a for a, b in zip(chosen, default, strict=True) if a != b) or "linear"


def _kinds(scope: Scope) -> list[StepKind]:
    """Return what is measured: the reference first, then every method as the scope has it."""
    rows = [StepKind("backprop", HAND_WRITTEN)]
    for name in scope.methods:
        learns_by_rule = method_named(name).rule is not None
        for compiled in scope.compiled:
            if not learns_by_rule:
                rows.append(StepKind(name, HAND_WRITTEN, compiled=compiled))
                if scope.arch == "cnn":
                    rows.append(StepKind(name, "plain", compiled=compiled))
                continue
            rows.append(StepKind(name, "in-process", compiled=compiled))
            if name == "cdni":
                rows.append(StepKind(name, "plain", compiled=compiled))
        if name == "cdni" and False in scope.compiled:
            rows.append(StepKind(name, "in-process", update_prob=0.2))
    return list(dict.fromkeys(rows))


def _measure(
    scope: Scope, network: Network, kinds: Sequence[StepKind], lines: Sequence[Record]
) -> Iterator[Record]:
    cell = lines[0]["cell"]
    if any(kind.compiled for kind in kinds):
        torch.compiler.reset()  # or graphs of other widths would count against the limit of recompilations
    make = _noise if network.arch == "cnn" else _batches
    batches = make(cell["batch_size"], lines[0]["seed"], scope.device)
    turns: dict[StepKind, Turn] = {}
    failed: dict[StepKind, str] = {}
    for kind in kinds:
        try:
            step = make_step(kind, network, batches, lines[0]["seed"])
            turns[kind] = warmed_up(step, scope.seconds, scope.device)
        except Exception as error:  # a peer that fails is a line that says so
            failed[kind] = reason_of(error)
    failed |= take_turns(turns, scope.rounds, scope.device)
    flops = _Flops(network, batches)
    reference = turns.get(kinds[0])
    for kind, line in zip(kinds, lines, strict=True):
        turn, error = turns.get(kind), failed.get(kind)
        metrics: dict[str, Any] = {}
        if turn is not None and reference is not None:
            metrics = ratios(turn.times_ms, reference.times_ms)
            if kind.update_prob == 1:  # one step's count says nothing about a random one
                metrics["ratio_arithmetic"] = flops(kind) / flops(kinds[0])
        elif error is None:
            error = "the hand-written loop, to which it is compared, could not be measured"
        if scope.learn and error is None and not kind.compiled:
            metrics |= _learn(kind, line, scope)
        yield finish_line(line, scope.device, metrics, error)


def _noise(batch_size: int, seed: int, device: str) -> list[tuple[Tensor, Tensor]]:
    """Return batches of the size of CIFAR-10's images, channels last: the time of a step does not ask what is on them."""
    generator = torch.Generator().manual_seed(seed)
    made: list[tuple[Tensor, Tensor]] = []
    for _ in range(_NUM_BATCHES):
        x = torch.rand(batch_size, 3, 32, 32, generator=generator)
        y = torch.randint(10, (batch_size,), generator=generator)
        made.append((x.to(device, memory_format=torch.channels_last), y.to(device)))
    return made


def _batches(batch_size: int, seed: int, device: str) -> list[tuple[Tensor, Tensor]]:
    train = load(_DATA).train.to(torch.device(device))
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))
    starts = [(k * batch_size) % (len(train) - batch_size + 1) for k in range(_NUM_BATCHES)]
    ids = [order[s : s + batch_size].to(train.y.device) for s in starts]
    return [(train.x[i], train.y[i]) for i in ids]


class _Flops:
    """Operations of the matrix products of a step; a compiled step has those of the eager one."""

    def __init__(self, network: Network, batches: Sequence[tuple[Tensor, Tensor]]) -> None:
        self._size = network, batches, 0
        self._known: dict[StepKind, int] = {}

    def __call__(self, kind: StepKind) -> int:
        eager = replace(kind, compiled=False)
        if eager not in self._known:
            step = make_step(eager, *self._size)
            for _ in range(self._size[0].layers):  # messages that cross interfaces late have come by then
                step()
            with FlopCounterMode(display=False) as counter:
                step()
            self._known[eager] = counter.get_total_flops()
        return self._known[eager]


def _learn(kind: StepKind, line: Record, scope: Scope) -> dict[str, Any]:
    """Train a network of the line's size as ``compare`` does; return when it was accurate enough."""
    cell = line["cell"]
    (run,) = comparison(
        *(scope.schedule, _DATA, [kind.method], [line["seed"]], scope.device, scope.data_dir),
        layers=cell["layers"],
        width=cell["width"],
        engine=kind.engine if kind.engine != HAND_WRITTEN else "in-process",
        batch_size=cell["batch_size"],
        update_prob=None if kind.update_prob == 1 else kind.update_prob,
    )
    return time_to_accuracy(run)
