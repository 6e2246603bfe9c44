"""Records of language models to make reports of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from synthgrad.lab.report.language_models import language_tables
from synthgrad.lab.report.trainings import Table
from tests.lab.report.helpers import frame, record

_HEADS = ("local_loss", "interlocked", "head_gradient", "late_correction")


def gpt_run(
    method: str = "backprop",
    bits: Sequence[float] = (4.0, 3.0, 2.5),
    seed: int = 0,
    *,
    optimizer: str = "AdamW",
    modules: int | None = 2,
    ms: float = 10.0,
    rule: dict[str, Any] | None = None,
    cell: dict[str, Any] | None = None,
    config: dict[str, Any] | None = None,
    cosine: float | None = None,
    weight: float | None = None,
    **changes: Any,
) -> dict[str, Any]:
    """Return a run of 30 updates of 8 windows of 16 characters, measured at every tenth, a second apart.

    Args:
        method: its name.
        bits: validation bits per character at each point; in test it is 0.1 more.
        seed: of the run.
        optimizer: as records name it.
        modules: number of modules; none without cuts.
        ms: time of a step.
        rule: settings of the rule besides those that are always recorded.
        cell: further parts of the cell.
        config: further settings.
        cosine: of the credit, at every point and at each of two interfaces.
        weight: of the newest correction, likewise.
        changes: of the record.
    """
    settings = (
        {} if method == "backprop" else {"hidden": [], "norm": True, "like_layer": False, "lr_factor": 1.0}
    )
    settings |= {"head": "tokens"} if method in _HEADS else {}
    accumulate = (config or {}).get("accumulate", 1)
    steps, batch = 30 * accumulate, 8 // accumulate
    measured = {k: v for k, v in {"cosine": cosine, "weight": weight}.items() if v is not None}
    quality = {"quality": {k: measured for k in ("block1", "block2")}} if measured else {}
    curve = [
        {
            "step": 10 * k * accumulate,
            "elapsed_s": 1.0 * k,
            "tokens_seen": 1280 * k,
            "train_bits_per_char": level - 0.1,
            "val_bits_per_char": level,
            **quality,
        }
        for k, level in enumerate(bits, 1)
    ]
    return record(
        method,
        seed,
        **{
            "experiment": "gpt_trials",
            "cell": {
                **{"data": "shakespeare", "arch": "gpt", "layers": 4, "width": 32, "heads": 2, "context": 16},
                **{"tokens": "characters", "vocabulary": None, "tied": False, "at": []},
                "modules": None if method == "backprop" else modules,
                "engine": "plain" if method == "backprop" else "in-process",
                **(cell or {}),
            },
            "steps": steps,
            "batch_size": batch,
            "metrics": {"bits_per_char": bits[-1] + 0.1, "val_bits_per_char": bits[-1], "tokens_seen": 3840},
            "time": {"step_ms_median": ms},
            "curve": curve,
            "config": {
                **{"lr": 0.002, "milestones": [], "eval_every": 10 * accumulate, "optimizer": optimizer},
                "rule": settings | (rule or {}),
                **(config or {}),
            },
            **changes,
        },
    )


def late(delay: int, bits: Sequence[float] = (4.0, 3.0, 2.5), seed: int = 0, **more: Any) -> dict[str, Any]:
    """Return a run with late gradients."""
    return gpt_run("delayed", bits, seed, rule={"delay": delay}, **more)


def language(*records: dict[str, Any]) -> list[Table]:
    """Return the tables of some records."""
    found: pd.DataFrame = frame(records)
    return language_tables(found)
