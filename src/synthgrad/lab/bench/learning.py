"""Speed without learning is nothing: the time to an accuracy, for a benchmark's line."""

from __future__ import annotations

from typing import Any

from ..experiments.config import RunConfig
from ..experiments.train import run

__all__ = ["time_to_accuracy"]


def time_to_accuracy(config: RunConfig) -> dict[str, Any]:
    """Train as a configuration says; return when it was accurate enough, or why it was not trained."""
    record = run(config)
    if record["status"] != "ok":
        return {"learn_error": f"{record['status']}: {record['error']}"}
    metrics = record["metrics"]
    return {
        "time_to_accuracy_s": metrics["time_to_target_s"],
        "accuracy_pct": 100 - metrics["test_error_pct"],
        "target_accuracy_pct": 100 - config.target_error_pct,
    }
