"""Runs for tests: a small comparison, and any of its settings changed by name."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

from synthgrad.lab.recipes import comparison
from synthgrad.lab.training.run import Run

__all__ = ["changed", "compared"]


def compared(method: str = "cdni", **given: Any) -> Run:
    """Return the run of one method in the smoke tier of a comparison on the embedded data."""
    (run,) = comparison("smoke", "mnist-10k", [method], [0], **given)
    return run


def changed(run: Run, **values: Any) -> Run:
    """Return a run with other values of fields of its own, its payload, its schedule or its rule."""
    for part in ("payload", "schedule", "rule"):
        old = getattr(run, part)
        own = {f.name for f in fields(old)} & values.keys()
        if own and part not in values:
            new = {name: values.pop(name) for name in own}
            run = replace(run, **{part: replace(old, **new)})
    return replace(run, **values)
