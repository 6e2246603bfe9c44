"""What 256 decoupled stages lose to their links, over round trips and rates, against the same stages without any.

A stage is a block of a GPT of width 4,096 with a linear model of a token's gradient at its end, and a batch 8,192 tokens in
bfloat16. It computes as fast as one of the GPUs with which the pipelines of ``public.py`` were measured: 28 ms for a step with its rule,
in which each wire has to carry 67 MB, for which it needs 19 Gbit/s. Windows are as wide as round trips ask for.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ....planner import Job, Link, Network, Run, StageCost, simulate
from ....planner.programs import decoupled, window_for
from .public import BASELINES

__all__ = ["RATES_MBIT_S", "ROUND_TRIPS_MS", "stage_cost", "scale_rows"]

ROUND_TRIPS_MS = (0.1, 1.0, 10.0, 25.0, 50.0, 100.0, 200.0)
RATES_MBIT_S = (10.0, 100.0, 1e3, 1e4, 1e5, 4e5)

_STAGES = 256
_WIDTH, _CONTEXT, _TOKENS = 4096, 1024, 8192
_BYTES = 2.0  # of a number in bfloat16
_MEASURED = 24  # steps, at least


def stage_cost() -> StageCost:
    """Return the cost of a block and its rule for a batch, from their FLOPs."""
    measured = BASELINES[0]
    per_flop_s = measured.costs()[0].forward_s / (measured.microbatches * measured.tokens * measured.flops(0))
    block = 2.0 * _TOKENS * (12 * _WIDTH**2 + _CONTEXT * _WIDTH) * per_flop_s
    rule = 2.0 * _TOKENS * _WIDTH**2 * per_flop_s
    return StageCost(
        block, 2 * block, output_bytes=_BYTES * _TOKENS * _WIDTH, credit_s=rule, observe_s=2 * rule
    )


def scale_rows(
    *,
    names_only: bool = False,
    stages: int = _STAGES,
    round_trips_ms: Sequence[float] = ROUND_TRIPS_MS,
    rates_mbit_s: Sequence[float] = RATES_MBIT_S,
) -> Iterator[Mapping[str, Any]]:
    """Yield a row for stages without links, and for each round trip and rate.

    Args:
        names_only: say which rows there will be.
        stages: how many.
        round_trips_ms: in milliseconds.
        rates_mbit_s: of each direction.
    """
    cost = stage_cost()
    links = [(None, None), *((rtt, rate) for rate in rates_mbit_s for rtt in round_trips_ms)]
    alone_s: float | None = None
    for rtt_ms, mbit_s in links:
        cell = {"stages": stages, "tokens": _TOKENS, "width": _WIDTH, "rtt_ms": rtt_ms, "mbit_s": mbit_s}
        metrics: dict[str, Any] = {}
        if not names_only:
            link = Link.of(rtt_ms=rtt_ms or 0.0, mbit_s=mbit_s or math.inf)
            window = window_for(link.rtt_s, cost.decoupled_s, most=None)
            run = simulate(_job(cost, stages, window), Network.of(link))
            alone_s = alone_s or run.step_s
            metrics = {
                **_figures(run),
                "lost_pct": max(0.0, 100 * (1 - alone_s / run.step_s)),
                "window": window,
            }
        yield {"method": "stages", "cell": cell, "batch_size": _TOKENS, "metrics": metrics}


def _job(cost: StageCost, stages: int, window: int) -> Job:
    """Return the job of equal stages, which have a steady rhythm once their windows have gone round."""
    warm = 2 * window + 2
    whole = (window + 1) * math.ceil(_MEASURED / (window + 1))
    steps = warm + 1 + whole
    job = decoupled([cost] * stages, window=window, steps=steps, batch_size=_TOKENS)
    return replace(job, warm=warm)


def _figures(run: Run) -> dict[str, Any]:
    return {
        "predicted_ms": 1e3 * run.step_s,
        "idle_share": run.idle_share,
        "idle_cause": run.idle_cause,
        "sent_bytes_per_step": run.bytes_per_step,
        "mean_age": run.mean_age,
    }
