"""Records of recurrent networks to make reports of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tests.lab.report.helpers import record

RULES: dict[str, dict[str, Any]] = {
    "bptt": {},
    "dni": {"norm": True, "alpha": 0.1, "lr_factor": 1.0},
    "dni_aux": {"norm": True, "alpha": 0.1, "lr_factor": 1.0, "aux_weight": 1.0},
}


def _config(method: str, **more: Any) -> dict[str, Any]:
    return {"lr": 0.003, "milestones": [], "eval_every": 10, "rule": RULES.get(method, {}), **more}


def copy_run(
    method: str = "bptt",
    seed: int = 0,
    unroll: int = 3,
    lengths: Sequence[int] = (4, 5, 6),
    *,
    ms: float = 10.0,
    **changes: Any,
) -> dict[str, Any]:
    """Return a run of Copy with batches of 10: one more length is solved every 100 steps of 0.01 s."""
    curve = [
        {
            "step": 100 * k,
            "elapsed_s": 1.0 * k,
            "sequence_length": length,
            "sequences_seen": 1000 * k,
            "train_bits_per_char": 0.1,
        }
        for k, length in enumerate(lengths, 1)
    ]
    longest = lengths[-1] if lengths else 0
    metrics = {"sequence_length": longest, "sequences_seen": 1000 * len(lengths)}
    return record(
        method,
        seed,
        **{
            "experiment": "copy",
            "cell": {"data": "copy", "arch": "lstm", "layers": 1, "width": 32, "unroll": unroll},
            "steps": 300,
            "batch_size": 10,
            "metrics": metrics,
            "time": {"step_ms_median": ms},
            "curve": curve,
            "config": _config(method, symbols=2, threshold_bits=0.15),
            **changes,
        },
    )


def text_run(
    method: str = "bptt",
    seed: int = 0,
    unroll: int = 5,
    levels: Sequence[float] = (3.0, 2.5, 2.0),
    *,
    chars: int = 30_000,
    data: str = "ptb",
    **changes: Any,
) -> dict[str, Any]:
    """Return a run of the character language model with batches of 10, measured equally often, a second apart."""
    steps = chars // (10 * unroll)
    curve = [
        {
            "step": k * steps // len(levels),
            "elapsed_s": 1.0 * k,
            "chars_seen": k * steps // len(levels) * 10 * unroll,
            "train_bits_per_char": level - 0.1,
            "val_bits_per_char": level,
        }
        for k, level in enumerate(levels, 1)
    ]
    metrics = {"bits_per_char": min(levels) - 0.05, "val_bits_per_char": min(levels)} if levels else {}
    return record(
        method,
        seed,
        **{
            "experiment": "charlm",
            "cell": {"data": data, "arch": "lstm", "layers": 1, "width": 64, "unroll": unroll},
            "steps": steps,
            "batch_size": 10,
            "metrics": metrics,
            "time": {"step_ms_median": 10.0},
            "curve": curve,
            "config": _config(method) | {"eval_every": steps // 3},
            **changes,
        },
    )


def clocked_run(method: str = "bptt", seed: int = 0, **changes: Any) -> dict[str, Any]:
    """Return a run of two networks that tick at different rates."""
    curve = [
        {
            "step": 10 * k,
            "elapsed_s": 1.0 * k,
            "examples_seen": 1600 * k,
            "a_accuracy_pct": 50.0 + 10 * k,
            "b_accuracy_pct": 30.0 + 5 * k,
        }
        for k in (1, 2, 3)
    ]
    metrics = {
        "a_accuracy_pct": 80.0,
        "b_accuracy_pct": 45.0,
        "a_updates_per_s": 12.5,
        "b_updates_per_s": 3.0,
    }
    rule = {} if method == "bptt" else {"hidden": [], "norm": True, "receiver": True, "lr_factor": 1.0}
    return record(
        method,
        seed,
        **{
            "experiment": "multinet",
            "cell": {"data": "mnist", "arch": "clocked", "layers": None, "width": 16, "period": 4},
            "metrics": metrics,
            "curve": curve,
            "config": {"lr": 0.003, "rule": rule},
            **changes,
        },
    )


def bad(
    run: dict[str, Any], status: str = "diverged", error: str = "the loss is not finite"
) -> dict[str, Any]:
    """Return the run as one that ended early, after its first point."""
    return run | {"status": status, "error": error, "metrics": {}, "curve": run["curve"][:1]}
