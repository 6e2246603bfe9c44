"""Tables, plots and the report page, made from result records and nothing else.

What draws and what groups is loaded when the first table or page is made: help, lists and completion do not wait.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .measures import is_unsteady
    from .page import write_report
    from .sheet import Sheet, markdown
    from .tables import bench_sheets, gathered_sheets, training_sheets

__all__ = [
    "Sheet",
    "bench_sheets",
    "gathered_sheets",
    "is_unsteady",
    "markdown",
    "training_sheets",
    "write_report",
]

_MODULES = {
    "page": ("write_report",),
    "measures": ("is_unsteady",),
    "sheet": ("Sheet", "markdown"),
    "tables": ("bench_sheets", "gathered_sheets", "training_sheets"),
}


def __getattr__(name: str) -> Any:
    for module, names in _MODULES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
