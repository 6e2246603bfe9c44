"""``bench memory --arch lstm``: what is held for backward, over the length of unrolls and over the horizon.

A step is an episode of so many steps: full BPTT keeps all of it for one backward pass, truncated BPTT and synthetic
gradients an unroll at a time. Time is that of an unroll, an episode's over their number.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from ....core import ConfigError
from ..base import Scope, Setting, blank_line
from ..unroll_maker import WHOLE, UnrollSize, make_unroll
from .probe import Memory, measured, probe

__all__ = ["METHODS", "TIERS", "settings"]

METHODS = (WHOLE, "bptt", "dni", "dni_aux")

_NETWORK: dict[str, Any] = {"layers": (1,), "methods": METHODS, "arch": "lstm"}

TIERS = {
    "smoke": Scope(
        (16,), batch_sizes=(8,), rounds=1, unrolls=(2, 4), horizons=(8,), tier="smoke", **_NETWORK
    ),
    "quick": Scope(
        (256,),
        batch_sizes=(256,),
        rounds=3,
        unrolls=(5, 10, 20),
        horizons=(40, 120, 360),
        tier="quick",
        **_NETWORK,
    ),
    "full": Scope(
        (1024,),
        batch_sizes=(256,),
        rounds=3,
        unrolls=(5, 10, 20),
        horizons=(40, 120, 360),
        tier="full",
        **_NETWORK,
    ),
}


@dataclass(frozen=True, slots=True)
class _Job:
    """What one process measures."""

    method: str
    size: UnrollSize
    seed: int
    threads: int
    device: str
    rounds: int


def settings(scope: Scope) -> list[Setting]:
    """Return one setting for each width, batch size, horizon, length of unroll and seed.

    Raises:
        ConfigError: if a method is unknown, or an unroll does not divide a horizon.
    """
    for method in scope.methods:
        if method not in METHODS:
            raise ConfigError(
                f"method '{method}' is unknown to bench memory --arch lstm; accepted: {', '.join(METHODS)}"
            )
    for horizon, unroll in itertools.product(scope.horizons, scope.unrolls):
        if horizon % unroll:
            raise ConfigError(
                f"unroll of {unroll}: expected a number that divides the horizon of {horizon} steps"
            )
    product = itertools.product(scope.seeds, scope.widths, scope.batch_sizes, scope.horizons, scope.unrolls)
    return [_setting(scope, UnrollSize(w, t, horizon, b), seed) for seed, w, b, horizon, t in product]


def _setting(scope: Scope, size: UnrollSize, seed: int) -> Setting:
    cell: dict[str, Any] = {
        "arch": "lstm",
        "width": size.width,
        "layers": 1,
        "batch_size": size.batch_size,
        "unroll": size.unroll,
        "horizon": size.horizon,
        "threads": scope.threads,
    }
    jobs = [
        _Job(method, size, seed, scope.threads, scope.device, scope.rounds)
        for method in dict.fromkeys((WHOLE, *scope.methods))
    ]
    lines = [
        blank_line("memory", job.method, scope, seed, cell, {"optimizer": "Adam, fused"}) for job in jobs
    ]
    label = f"memory: LSTM {size.width}, batch {size.batch_size}, {size.horizon} steps, T {size.unroll}"
    return Setting(label, lines, partial(measured, jobs, lines, _observe, WHOLE))


def _observe(job: _Job) -> dict[str, Any]:
    """Measure in this process."""
    torch.set_num_threads(job.threads)
    memory = Memory(job.device)
    step, alive = make_unroll(job.method, job.size, job.seed, job.device)
    num_unrolls = job.size.horizon // job.size.unroll
    found = probe(_episode(step, 1 if job.method == WHOLE else num_unrolls), alive, memory, job.rounds)
    found["unroll_ms_median"] = found["step_ms_median"] / num_unrolls
    return found


def _episode(step: Callable[[], object], num: int) -> Callable[[], object]:
    def episode() -> None:
        for _ in range(num):
            step()

    return episode
