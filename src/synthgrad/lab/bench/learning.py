"""Speed without learning is nothing: the time to an accuracy, for a benchmark's line."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ..recipes import comparison
from ..training.payloads import FeedForward
from ..training.train import train
from .base import Size
from .declaration import Scope

__all__ = ["time_to_accuracy"]


def time_to_accuracy(
    scope: Scope,
    size: Size,
    schedule: str,
    *,
    data: str,
    method: str,
    engine: str,
    update_prob: float = 1.0,
    compiled: bool = False,
    steps: tuple[int, int] | None = None,
) -> dict[str, Any]:
    """Train a network of a size as ``compare`` does; return when it was accurate enough, or why it was not trained.

    Args:
        scope: says on which device, and where data lie.
        size: of the network and its batches.
        schedule: the tier of ``compare`` whose schedule the training has.
        data: name of the data set.
        method: name of the method.
        engine: name of the engine.
        update_prob: probability that a module updates in a step.
        compiled: run it compiled.
        steps: number of steps and of those between evaluations, in place of the schedule's.
    """
    (run,) = comparison(
        *(schedule, data, [method], [size.seed], scope.device, scope.data_dir),
        layers=size.layers,
        width=size.width,
        engine=engine,
        batch_size=size.batch_size,
        update_prob=None if update_prob == 1 else update_prob,
        compiled=compiled,
    )
    if steps is not None:
        run = replace(run, schedule=replace(run.schedule, steps=steps[0], eval_every=steps[1]))
    assert isinstance(run.payload, FeedForward)
    record = train(run)
    if record.status != "ok":
        return {"learn_error": f"{record.status}: {record.error}"}
    return {
        "time_to_accuracy_s": record.metrics["time_to_target_s"],
        "accuracy_pct": 100 - record.metrics["test_error_pct"],
        "target_accuracy_pct": 100 - run.payload.target_error_pct,
    }
