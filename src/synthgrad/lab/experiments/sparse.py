"""Sparse updates: test error over the probability of an update (DNI §3.1).

Two comparisons that must be kept apart: at equal numbers of updates a run with probability ``p`` makes
``1/p`` times the steps, at equal numbers of steps it learns less often.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch

from .config import Cell, RunConfig, Schedule
from .feed_forward import FULL, one_run

__all__ = ["METHODS", "TIERS", "configs", "drawn_probs"]

TIERS = ("smoke", "quick", "full")
METHODS = ("backprop", "dni", "cdni")

#: Data, update probabilities and the schedule of p = 1, which is what equal work is measured by.
_SWEEPS = {
    "smoke": ("mnist-10k", (0.25, 1.0), Schedule(steps=40, batch_size=64, lr=1e-3, eval_every=20)),
    "quick": ("mnist", (0.1, 0.2, 0.5, 1.0), Schedule(steps=2500, lr=3e-4, eval_every=250)),
}
_PRECISION = {"smoke": "float32", "quick": "bfloat16", "full": "float32"}
_NUM_DRAWN = 100


def configs(tier: str, seeds: Sequence[int], device: str, data_dir: str | None) -> list[RunConfig]:
    """Return the runs: a sweep over fixed probabilities, in the full tier one drawn for each run, as published."""
    cells = _drawn if tier == "full" else _swept
    return [
        one_run(
            "sparse",
            tier,
            method,
            seed,
            cell,
            schedule,
            precision=_PRECISION[tier],
            device=device,
            data_dir=data_dir,
        )
        for seed in seeds
        for method, cell, schedule in cells(tier, seed)
    ]


def _swept(tier: str, seed: int) -> Iterator[tuple[str, Cell, Schedule]]:
    data, probs, base = _SWEEPS[tier]
    for prob in reversed(probs):
        longer = replace(base, steps=round(base.steps / prob), eval_every=round(base.eval_every / prob))
        for method in METHODS:
            yield method, Cell(data, update_prob=prob), longer  # as many updates as with p = 1
        for method in METHODS if prob < 1 else ():
            yield method, Cell(data, update_prob=prob), base  # as many steps


def _drawn(tier: str, seed: int) -> Iterator[tuple[str, Cell, Schedule]]:
    for k, prob in enumerate(drawn_probs(seed)):
        yield METHODS[k % len(METHODS)], Cell("mnist", update_prob=prob), FULL


def drawn_probs(seed: int, num: int = _NUM_DRAWN) -> list[float]:
    """Return update probabilities over (0, 1], the same ones for a seed at all times."""
    drawn = torch.rand(num, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return [max(1e-6, round(1 - u, 6)) for u in drawn.tolist()]
