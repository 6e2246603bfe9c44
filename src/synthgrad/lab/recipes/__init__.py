"""Experiments as data: a module for each, which declares an ``EXPERIMENT`` and gives it its name.

PyTorch is loaded only when runs are made, because the command line reads names, tiers and methods of all experiments.
"""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path

from ..training.settings import refuse
from ._experiment import Choice, Experiment, Group, Variant
from .comparison import comparison

__all__ = ["Choice", "Experiment", "Group", "Variant", "comparison", "experiment_named", "experiments"]


@cache
def experiments() -> dict[str, Experiment]:
    """Return the experiments of the package by name; searches for settings come last."""
    names = [m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_")]
    modules = {name: importlib.import_module(f"{__name__}.{name}") for name in names}
    found = {
        name: replace(module.EXPERIMENT, name=name)
        for name, module in modules.items()
        if hasattr(module, "EXPERIMENT")
    }
    return dict(sorted(found.items(), key=lambda entry: (entry[0].endswith("_search"), entry[0])))


def experiment_named(name: str) -> Experiment:
    """Return an experiment by its name, by its name in records, or from the user's own file ``PATH.py``.

    Raises:
        ConfigError: if there is no such experiment, or the file does not declare one.
    """
    if name.endswith(".py"):
        return _from_file(Path(name))
    found = experiments()
    by_record = {e.recorded_as: e for e in found.values() if e.recorded_as}
    if name not in found and name not in by_record:
        refuse(
            f"experiment '{name}' is unknown; accepted: {', '.join(found)}, or a .py file that declares an EXPERIMENT"
        )
    return found.get(name) or by_record[name]


def _from_file(path: Path) -> Experiment:
    if not path.is_file():
        refuse(f"experiment '{path}': there is no such file; name one that declares an EXPERIMENT")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(path.stem, module)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        refuse(
            f"experiment '{path}': {type(error).__name__}: {error}; expected a module that can be imported"
        )
    found = getattr(module, "EXPERIMENT", None)
    if not isinstance(found, Experiment):
        refuse(f"experiment '{path}': EXPERIMENT is a {type(found).__name__}, expected an Experiment")
    return replace(found, name=path.stem)
