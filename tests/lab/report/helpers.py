"""Records to make reports of."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from synthgrad.lab.records import Record
from synthgrad.lab.report.bench_plots import bench_plot_groups
from synthgrad.lab.report.benches import bench_sheet
from synthgrad.lab.report.frame import checked, frame_of
from synthgrad.lab.report.grids import grid_sheets
from synthgrad.lab.report.plot import Group, Plot, draw
from synthgrad.lab.report.sheet import Sheet
from synthgrad.lab.report.tables import single_tables
from synthgrad.lab.report.trainings import Table
from synthgrad.lab.report.unrolls import UnrollSweep, unroll_sweeps


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


# As the report reads records


def typed(records: Iterable[Mapping[str, Any]]) -> list[Record]:
    found, problems = checked(records)
    assert problems == []
    return found


def frame(records: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    return frame_of(typed(records))


def tables(records: Iterable[Mapping[str, Any]]) -> list[Table]:
    return single_tables(frame(records))


def sweeps(records: Iterable[Mapping[str, Any]], *, least: int = 2) -> list[UnrollSweep]:
    return unroll_sweeps(frame(records), least=least)


def grids(records: Iterable[Mapping[str, Any]]) -> list[Sheet]:
    return grid_sheets(frame(records))


def bench(name: str, records: Sequence[Mapping[str, Any]]) -> Sheet:
    return bench_sheet(name, typed(records))


def bench_groups_of(name: str, records: Sequence[Mapping[str, Any]]) -> list[Group]:
    return bench_plot_groups(name, typed(records))


def cells(sheet: Sheet, row: int = 0) -> dict[str, str]:
    """Return the texts of a row by their headings."""
    return dict(zip(sheet.headings, sheet.rows[row], strict=True))


def texts(plot: Plot) -> list[str]:
    """Return what a drawn plot says."""
    return re.findall(r"<text[^>]*>([^<]*)</text>", draw(plot))


def labels(table: Table) -> list[str]:
    """Return the names of a table's rows."""
    return [runs["label"].iloc[0] for runs in table.rows()]


# As the script fills documents


def filled(script: Any, marker: str, *records: dict[str, Any]) -> str:
    """Return a page with one marker for a folder of records, as it is filled; pictures are written."""
    folder = script.ROOT / "results/a"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")
    page = script.ROOT / "docs" / "page.md"
    page.write_text(f"before\n\n{marker}\n<!-- end -->\n\nafter\n", encoding="utf-8")
    made = script.documents(page)
    for path, text in made.items():
        path.write_text(text, encoding="utf-8")
    assert script.documents(page) == made  # filled once, it stays
    return made[page]
