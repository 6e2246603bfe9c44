"""Speed without learning is nothing: the time to an accuracy, for a benchmark's line."""

from __future__ import annotations

from typing import Any

from ..training.payloads import FeedForward
from ..training.run import Run
from ..training.train import train

__all__ = ["time_to_accuracy"]


def time_to_accuracy(run: Run) -> dict[str, Any]:
    """Train a run of a feed-forward network; return when it was accurate enough, or why it was not trained."""
    assert isinstance(run.payload, FeedForward)
    record = train(run)
    if record.status != "ok":
        return {"learn_error": f"{record.status}: {record.error}"}
    metrics = record.metrics
    return {
        "time_to_accuracy_s": metrics["time_to_target_s"],
        "accuracy_pct": 100 - metrics["test_error_pct"],
        "target_accuracy_pct": 100 - run.payload.target_error_pct,
    }
