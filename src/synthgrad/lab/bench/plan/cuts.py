"""Cuts that the planner proposes for five networks; of two of them every single cut is tried on two stages.

The rule at a cut is a local loss, whose cost hangs on where the cut is. What is predicted is a step on this machine: two
processes of one thread each, over the loopback device.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from statistics import median
from typing import Any

import torch

from ....planner import CostTable, Link, Machine, Network, balanced_cuts, profile_model, simulate
from ....planner.programs import decoupled
from ..workers import Workers
from .models import MODELS, local_loss
from .predict import CORES

__all__ = ["BRUTE_FORCE", "cut_rows"]

#: Networks whose single cuts are all measured.
BRUTE_FORCE = ("mlp", "uneven")

_STAGES = 2
_WARM, _SECONDS = 20, 1.0
_TIMEOUT_S = 120.0
_REPEATS = 20


def cut_rows(rounds: int, threads: int, *, names_only: bool = False) -> Iterator[Mapping[str, Any]]:
    """Yield a row for each network's proposed cut, and of some networks for each cut that is possible.

    Args:
        rounds: in which the cuts take turns.
        threads: of each process.
        names_only: say which rows there will be, with the cheapest profile that tells.
    """
    for network in MODELS:
        table = _profile(network, 1 if names_only else _REPEATS, threads)
        chosen = balanced_cuts(table, _STAGES)
        tried = [[name] for name in table.names] if network in BRUTE_FORCE else []
        times = {} if names_only else _measured(network, [cut for (cut,) in tried], rounds, threads)
        rows: list[tuple[str, list[str]]] = [("planned", chosen), *(("single cut", cut) for cut in tried)]
        for method, cuts in rows:
            cell = {"network": network, "stages": _STAGES, "threads": threads}
            if method != "planned":
                cell["at"] = cuts[0]
            metrics: dict[str, Any] = {}
            if not names_only:
                metrics = _figures(table, cuts, times, chosen)
            yield {"method": method, "cell": cell, "batch_size": table.batch_size, "metrics": metrics}


def _profile(network: str, repeats: int, threads: int) -> CostTable:
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    model, example, target, criterion = MODELS[network]()
    return profile_model(
        model,
        example,
        target=target,
        criterion=criterion,
        rule=local_loss(network),
        optimizer=lambda p: torch.optim.Adam(p, 3e-4, fused=True),
        repeats=repeats,
    )


def _figures(
    table: CostTable, cuts: list[str], times: Mapping[str, float], chosen: list[str]
) -> dict[str, Any]:
    network = Network.of(Link())
    job = decoupled(table.stages(cuts), link=network, listens=False, batch_size=table.batch_size)
    run = simulate(job, network, machines=[Machine((0, 1), CORES)])
    costs = table.stages(cuts)
    found: dict[str, Any] = {
        "cut": ", ".join(cuts),
        "predicted_ms": 1e3 * run.step_s,
        "stages_ms": ", ".join(f"{1e3 * cost.decoupled_s:.1f}" for cost in costs),
    }
    if cuts[0] in times:
        best = min(times.values())
        measured = times[cuts[0]]
        found |= {
            "measured_ms": 1e3 * measured,
            "error_pct": 100 * (run.step_s / measured - 1),
            "ratio_to_best": measured / best,
            "is_chosen": cuts == chosen,
        }
    return found


def _measured(network: str, cuts: list[str], rounds: int, threads: int) -> dict[str, float]:
    """Return the median seconds of a step with each cut; all take turns."""
    if not cuts:
        return {}
    settings = {"network": network, "threads": threads, "timeout_s": _TIMEOUT_S}
    times: dict[str, list[float]] = {cut: [] for cut in cuts}
    steps: dict[str, int] = {}
    with Workers("plan.two_stages", settings, _STAGES, _TIMEOUT_S) as workers:
        for cut in cuts:
            workers.ask({"do": "build", "cut": cut})
            trial = workers.ask({"do": "run", "cut": cut, "warm": _WARM, "steps": 5})
            steps[cut] = max(5, math.ceil(_SECONDS / max(a["step_s"] for a in trial)))
        for _ in range(rounds):
            for cut in cuts:
                answers = workers.ask({"do": "run", "cut": cut, "warm": 5, "steps": steps[cut]})
                times[cut].append(max(a["step_s"] for a in answers))
    return {cut: median(found) for cut, found in times.items()}
