"""Records to make reports of."""

from __future__ import annotations

from typing import Any


def point(step: int, **more: Any) -> dict[str, Any]:
    error = 50.0 / step
    return {
        "step": step,
        "elapsed_s": step / 10,
        "train_loss": 2.0 / step,
        "test_loss": 1 / step,
        "test_error_pct": error,
        "train_error_pct": error / 2,
    } | more


def record(method: str = "backprop", seed: int = 0, **changes: Any) -> dict[str, Any]:
    """Return a run of 4 layers × 256 on MNIST."""
    made: dict[str, Any] = {
        "schema": 1,
        "experiment": "compare",
        "tier": "quick",
        "method": method,
        "seed": seed,
        "cell": {"data": "mnist", "arch": "fcn", "layers": 4, "width": 256, "update_prob": 1.0},
        "steps": 30,
        "batch_size": 32,
        "metrics": {"test_error_pct": 2.5, "time_to_target_s": 1.5},
        "time": {"step_ms_median": 10.0},
        "curve": [point(10), point(20), point(30)],
        "status": "ok",
        "error": None,
        "config": {"lr": 0.00125, "target_error_pct": 3.0},
        "env": {"torch": "9.9.9", "device": "a processor", "threads": 2, "commit": "abc123"},
    }
    return made | changes


def failed(error: str, method: str = "dni", **changes: Any) -> dict[str, Any]:
    return record(method, metrics={}, time={}, curve=[], status="failed", error=error, **changes)


def step_line(
    method: str = "dni", *, cell: dict[str, Any] | None = None, **metrics: float | None
) -> dict[str, Any]:
    """Return a line of `bench step`."""
    base = {"width": 16, "layers": 4, "batch_size": 8, "threads": 1, "engine": "plain", "update_prob": 1.0}
    measured = {
        "step_ms_median": 1.5,
        "ratio_to_backprop": 0.5,
        "ratio_to_backprop_p10": 0.4,
        "ratio_to_backprop_p90": 0.6,
        "ratio_arithmetic": 1.25,
    }
    return record(
        method, experiment="bench/step", cell=base | (cell or {}), metrics=measured | metrics, curve=[]
    )


def memory_line(
    method: str = "in_process", *, cell: dict[str, Any] | None = None, **metrics: float
) -> dict[str, Any]:
    """Return a line of `bench memory`."""
    base = {"width": 16, "layers": 4, "batch_size": 8, "threads": 1}
    measured = {"saved_bytes_peak": 3.0 * 2**20, "ratio_to_backprop": 0.5}
    return record(
        method, experiment="bench/memory", cell=base | (cell or {}), metrics=measured | metrics, curve=[]
    )


def chain(num: int, rule: str = "SyntheticGradient(linear M)", engine: str = "in-process") -> dict[str, Any]:
    """Return the graph of a network of ``num`` layers, cut after all but the last."""
    ends = [f"layer{k}" for k in range(1, num)] + ["output"]
    return {
        "engine": engine,
        "modules": [
            {
                "name": end,
                "ends": [end],
                "inputs": ends[k - 1 : k],
                "parts": [end],
                "num_parameters": 1000 if k in (0, num - 1) else 500,
            }
            for k, end in enumerate(ends)
        ],
        "interfaces": [
            {"name": end, "shape": [256], "rule": rule, "num_parameters": 77} for end in ends[:-1]
        ],
    }


def uncut(*parts: str) -> dict[str, Any]:
    """Return the graph of a network that is not cut."""
    whole = {
        "name": "output",
        "ends": ["output"],
        "inputs": [],
        "parts": list(parts),
        "num_parameters": 9,
    }
    return {"engine": "backprop", "modules": [whole], "interfaces": []}


def module(name: str, inputs: tuple[str, ...], ends: tuple[str, ...] = ()) -> dict[str, Any]:
    return {
        "name": name,
        "ends": list(ends or (name,)),
        "inputs": list(inputs),
        "parts": [name],
        "num_parameters": 5,
    }


def branchy() -> dict[str, Any]:
    """Return a graph that fans out and in, with a module of two ends and lines that pass a rank."""
    modules = [
        module("stem", ()),
        module("both", ("stem",), ("a.0", "a.1")),
        module("side", ("stem",)),
        module("mid", ("a.1",)),
        module("output", ("a.0", "side", "mid", "stem")),
    ]
    rule = "SyntheticGradient(M with hidden 1024 × 1024, 10 classes)"
    names = ("stem", "a.0", "a.1", "side", "mid")
    return {
        "engine": "in-process",
        "modules": modules,
        "interfaces": [{"name": n, "shape": [64, 14, 14], "rule": rule, "num_parameters": 1} for n in names],
    }
