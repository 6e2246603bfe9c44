"""Published figures to stand beside ours, and what was different about how they came about."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from ..records import Cell

__all__ = [
    "SOURCE",
    "Figure",
    "errors_pct",
    "notes",
    "recurrent_figure",
    "recurrent_notes",
    "schedule_note",
    "widths_note",
]

_SUBSETS = {"mnist-10k": "mnist"}
_NAMED = ("data", "arch", "layers")
_UNLOCKED = frozenset({"dni_unlock", "cdni_unlock"})

#: The network whose speed was published.
_BENCHMARKED = Cell({"data": "mnist", "arch": "fcn", "layers": 4, "width": 256})


@cache
def _figures() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(
        (files("synthgrad.lab.report") / "published.json").read_text(encoding="utf-8")
    )
    return found


#: Where the errors stand, in few words.
SOURCE = "Jaderberg et al. 2016, Table 1"


def schedule_note() -> str:
    """Say whose errors they are and what budget they had, so that nobody takes it for ours."""
    figures = _figures()["feed_forward"]
    return f"Published: {figures['source']}, after {figures['schedule']}; not the budget of these runs."


def widths_note() -> str:
    """Say how wide the paper's networks were."""
    widths: dict[str, dict[str, None]] = {}
    for entry in _figures()["feed_forward"]["cells"]:
        widths.setdefault(entry["arch"], {})[f"{entry['width']} ({entry['data']})"] = None
    listed = "; ".join(f"{arch} {', '.join(found)}" for arch, found in widths.items())
    return f"Published for these numbers of units or filters: {listed}."


def errors_pct(cell: Cell, *, any_width: bool = False) -> dict[str, float]:
    """Return the published test errors of a cell by method; none if the cell is not one of the paper's.

    Args:
        cell: of a record. A convolutional one need not say its number of filters.
        any_width: also for a network of another width, where that is named beside.
    """
    for entry in _figures()["feed_forward"]["cells"]:
        fits = any_width or cell.width == entry["width"] or (cell.width is None and entry["arch"] == "cnn")
        if fits and all(cell.get(k) == entry[k] for k in _NAMED):
            return dict(entry["error_pct"])
    return {}


def notes(cell: Cell, methods: Collection[str]) -> list[str]:
    """Return what was published about a cell and has no place in the column of errors.

    Args:
        cell: of a record.
        methods: names of the methods of the table.
    """
    data = str(cell.data)
    whole = Cell({**cell, "data": _SUBSETS.get(data, data)})
    found: list[str] = []
    if data in _SUBSETS and (errors := errors_pct(whole)):
        listed = ", ".join(f"{method} {value:g} %" for method, value in errors.items())
        schedule = _figures()["feed_forward"]["schedule"]
        found += [f"Published for this network on all of {whole.data} ({SOURCE}; {schedule}): {listed}."]
    if errors_pct(whole) == errors_pct(_BENCHMARKED):
        figures = _figures()
        found += [figures["unlock"]["note"]] if not _UNLOCKED.isdisjoint(methods) else []
        found += figures["speed"]["notes"]
    return found


@dataclass(frozen=True, slots=True)
class Figure:
    """A published figure of a recurrent network.

    Attributes:
        value: the figure.
        recalled: is it recalled from the paper, and not read there?
    """

    value: float
    recalled: bool

    def __str__(self) -> str:
        return f"{self.value:g}" + ("†" if self.recalled else "")


def _recurrent(cell: Cell) -> dict[str, Any]:
    """Return what was published of a task, whatever the network's width; empty if nothing was."""
    entries = (v for v in _figures()["dni_recurrent"].values() if isinstance(v, dict))
    return next((e for e in entries if all(cell.get(k) == e[k] for k in ("data", "arch"))), {})


def recurrent_figure(cell: Cell, method: str) -> Figure | None:
    """Return the published figure of a recurrent network; None if there is none.

    Args:
        cell: of a record. A network of any width has the figure of the paper's, which `recurrent_notes` names.
        method: name of the method.
    """
    entry, unrolls = _recurrent(cell), _figures()["dni_recurrent"]["T"]
    row = entry.get("figures", {}).get(method)
    value = row[unrolls.index(cell.unroll)] if row and cell.unroll in unrolls else None
    return None if value is None else Figure(value, cell.unroll not in entry["read"])


def recurrent_notes(cell: Cell, shown: Collection[Figure], where: str) -> list[str]:
    """Say whose figures they are, which network they are of, and which of them are recalled.

    Args:
        cell: of a record.
        shown: the figures that the table shows.
        where: how the sentence begins: where in the table they stand.
    """
    entry, common = _recurrent(cell), _figures()["dni_recurrent"]
    found: list[str] = []
    if shown:
        network = f"{entry['arch'].upper()} of {entry['width']} units, {common['schedule']}"
        found += [f"{where} published: {common['source']}, {network}; not the budget of these runs."]
    if any(figure.recalled for figure in shown):
        found += [f"† {common['recalled']}."]
    if "claim" in entry:
        found += [f"Published claim ({common['source']}): {entry['claim']}."]
    return found
