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
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from ...core import ConfigError, decouple
from ...engines import LayerParallel
from ...rules import SyntheticGradient
from ..recipes import comparison
from ..records import Record
from ..tasks import cut_names, fully_connected, load
from .base import Scope, Setting, blank_line, finish_line
from .learning import time_to_accuracy
from .roofline import dense_work, measure_machine
from .turns import Turn, ratios, reason_of, take_turns, warmed_up

__all__ = ["METHODS", "LayerParallelBench"]

METHODS = (
    "backprop_eager",
    "backprop_compiled",
    "backprop_cudagraph",
    "layer_parallel",
    "layer_parallel_general",
)

_USUAL = METHODS[:-1]
_DATA = "mnist-10k"
_CLASSES = 10
_NUM_BATCHES = 16
_LR = 3e-4
_BOTH = (False, True)
#: Steps in which an accuracy is to be reached, and between evaluations, by schedule; otherwise those of `compare`.
_LEARNING_STEPS = {"quick": 30_000, "full": 100_000}
_LEARNING_EVAL = 500


class LayerParallelBench:
    """Fully connected networks on embedded digits, Adam (fused); cDNI with a linear ``M`` after every hidden layer."""

    name = "layer-parallel"
    about = (
        "time of a step over depth: all layers in one batch, and backprop eager, compiled, in a CUDA graph"
    )
    tiers = {
        "smoke": Scope((16,), (4,), (32,), _USUAL, rounds=2, seconds=0.01, schedule="smoke", tier="smoke"),
        "quick": Scope((64,), (4, 16, 32), (32,), _USUAL, _BOTH, rounds=15, seconds=0.1, tier="quick"),
        "full": Scope(
            (64, 256, 1024),
            (4, 8, 16, 32, 64, 128),
            (32, 256),
            METHODS,
            _BOTH,
            rounds=15,
            seconds=0.3,
            tier="full",
        ),
    }
    networks = {"fcn": tiers}

    def settings(self, scope: Scope) -> list[Setting]:
        """Return one setting for each width, depth, batch size and seed.

        Raises:
            ConfigError: if something is asked for that is not measured.
        """
        for method in scope.methods:
            if method not in METHODS:
                raise ConfigError(
                    f"method '{method}' is unknown to bench layer-parallel; accepted: {', '.join(METHODS)}"
                )
        if tuple(scope.methods) == ("backprop_cudagraph",) and scope.device != "cuda":
            raise ConfigError("method 'backprop_cudagraph' needs --device cuda; name another")
        if scope.precision != "float32":
            raise ConfigError(
                f"bench layer-parallel measures in float32 only, not in {scope.precision}; leave out --precision"
            )
        if scope.learn:
            load(_learning_data(scope), Path(scope.data_dir) if scope.data_dir else None)  # or nothing at all
        if min(scope.layers) < 3:
            raise ConfigError(
                f"{min(scope.layers)} layers: expected at least 3, which have a layer between the first and the last"
            )
        size = len(load(_DATA).train)
        for batch_size in scope.batch_sizes:
            if not 2 <= batch_size <= size:
                raise ConfigError(f"batch size {batch_size}: expected 2 to {size}")
        return [
            self._setting(scope, width, layers, batch_size, seed)
            for seed, width, layers, batch_size in itertools.product(
                scope.seeds, scope.widths, scope.layers, scope.batch_sizes
            )
        ]

    def _setting(self, scope: Scope, width: int, layers: int, batch_size: int, seed: int) -> Setting:
        cell = {"width": width, "layers": layers, "batch_size": batch_size, "threads": scope.threads}
        config = {"optimizer": "Adam, fused", "seconds": scope.seconds}
        learn: dict[str, Any] = {}
        if scope.learn:
            learn["learn"] = f"{scope.schedule}, {_learning_data(scope)}"
            if scope.schedule in _LEARNING_STEPS:
                learn["learning_steps"] = _LEARNING_STEPS[scope.schedule]
        kinds = _kinds(scope)
        lines = [
            blank_line(
                self.name,
                kind.method,
                scope,
                seed,
                {**cell, "compiled": kind.compiled},
                {
                    **config,
                    **({} if kind.is_general else learn),
                    **({"rule": "cdni, linear M"} if kind.is_ours else {}),
                },
            )
            for kind in kinds
        ]
        label = f"layer-parallel: {layers} layers × {width}, batch {batch_size}, {scope.threads} threads"
        return Setting(label, lines, partial(_measure, scope, kinds, lines))


@dataclass(frozen=True, slots=True)
class _Kind:
    """What a line measures."""

    method: str
    compiled: bool

    @property
    def is_ours(self) -> bool:
        return self.method.startswith("layer_parallel")

    @property
    def is_general(self) -> bool:
        return self.method == "layer_parallel_general"


def _kinds(scope: Scope) -> list[_Kind]:
    """Return what is measured: eager backpropagation first, then what the scope names."""
    kinds = [_Kind("backprop_eager", compiled=False)]
    for method in METHODS:
        if method not in scope.methods or (method == "backprop_cudagraph" and scope.device != "cuda"):
            continue
        if method.startswith("layer_parallel"):
            kinds += [_Kind(method, compiled) for compiled in scope.compiled]
        elif method != "backprop_eager" and True in scope.compiled:
            kinds.append(_Kind(method, compiled=True))
    return kinds


def _measure(scope: Scope, kinds: Sequence[_Kind], lines: Sequence[Record]) -> Iterator[Record]:
    cell, seed = lines[0]["cell"], lines[0]["seed"]
    torch.compiler.reset()  # or graphs of other sizes would count against the limit of recompilations
    batches = _batches(cell["batch_size"], seed, scope.device)
    turns: dict[_Kind, Turn] = {}
    failed: dict[_Kind, str] = {}
    for kind in kinds:
        try:
            step = _make_step(kind, cell, batches, seed)
            for _ in range(cell["layers"] + 2):  # until a batch has reached every layer
                step()
            turns[kind] = warmed_up(step, scope.seconds, scope.device)
        except Exception as error:  # a peer that fails is a line that says so
            failed[kind] = reason_of(error)
    failed |= take_turns(turns, scope.rounds, scope.device)
    peers = [turn for kind, turn in turns.items() if not kind.is_ours]
    best = min(peers, key=lambda turn: median(turn.times_ms), default=None)
    for kind, line in zip(kinds, lines, strict=True):
        error, metrics = failed.get(kind), dict[str, Any]()
        if kind in turns and best is not None:
            metrics = ratios(turns[kind].times_ms, best.times_ms, "best_backprop")
            metrics |= _roofline(kind, cell, batches[0][0], metrics["step_ms_median"])
            if scope.learn and not kind.is_general:
                metrics |= _learn(kind, line, scope)
        elif error is None:
            error = "no loop of backpropagation, to which it is compared, could be measured"
        yield finish_line(line, scope.device, metrics, error)


def _batches(batch_size: int, seed: int, device: str) -> list[tuple[Tensor, Tensor]]:
    train = load(_DATA).train.to(torch.device(device))
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))
    starts = [(k * batch_size) % (len(train) - batch_size + 1) for k in range(_NUM_BATCHES)]
    ids = [order[s : s + batch_size].to(train.y.device) for s in starts]
    return [(train.x[i], train.y[i]) for i in ids]


def _make_step(
    kind: _Kind, cell: dict[str, Any], batches: Sequence[tuple[Tensor, Tensor]], seed: int
) -> Callable[[], object]:
    """Return a step as a function without arguments; every call takes the next batch."""
    feed = itertools.cycle(batches)
    x = batches[0][0]
    criterion = nn.CrossEntropyLoss()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = fully_connected(x.shape[1:], _CLASSES, cell["layers"], cell["width"]).to(x.device)
        if kind.is_ours:
            net = decouple(model, cut_names(model), SyntheticGradient(context=_CLASSES), x[:2])
            fused = False if kind.is_general else None
            engine = LayerParallel(net, criterion, _adam, fused=fused, compile=kind.compiled)
            return lambda: engine.step(*next(feed))
    optimizer = _adam(model.parameters())

    def loss_of(x: Tensor, y: Tensor) -> Tensor:
        return criterion(model(x), y)

    forward = loss_of
    if kind.compiled:
        options: dict[str, Any] = {"triton.cudagraphs": True} if kind.method == "backprop_cudagraph" else {}
        forward = torch.compile(loss_of, fullgraph=True, options=options or None)

    def step() -> None:
        x, y = next(feed)
        optimizer.zero_grad()
        forward(x, y).backward()
        optimizer.step()

    return step


def _learning_data(scope: Scope) -> str:
    return _DATA if scope.schedule == "smoke" else "mnist"


def _learn(kind: _Kind, line: Record, scope: Scope) -> dict[str, Any]:
    """Train a network of the line's size as ``compare`` does; return when it was accurate enough."""
    cell = line["cell"]
    method = "cdni" if kind.is_ours else "backprop"
    data = _learning_data(scope)
    (run,) = comparison(
        *(scope.schedule, data, [method], [line["seed"]], scope.device, scope.data_dir),
        layers=cell["layers"],
        width=cell["width"],
        engine="layer-parallel",
        batch_size=cell["batch_size"],
        compiled=kind.compiled,
    )
    steps = _LEARNING_STEPS.get(scope.schedule)
    if steps is not None:  # small batches see little of the data in the usual number of steps
        schedule = replace(run.schedule, steps=steps, eval_every=_LEARNING_EVAL)
        run = replace(run, schedule=schedule)
    return time_to_accuracy(run)


def _adam(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, _LR, fused=True)


def _roofline(kind: _Kind, cell: dict[str, Any], x: Tensor, step_ms: float) -> dict[str, Any]:
    """Return what the step must do, what the machine can, and how far the one is from the other."""
    work = dense_work(
        x[0].numel(),
        _CLASSES,
        cell["layers"],
        cell["width"],
        cell["batch_size"],
        decoupled=kind.is_ours,
    )
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
