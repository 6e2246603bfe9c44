"""Plots that wait to be drawn: a page chooses how many it can hold before any work is done."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["Group", "Plot"]


@dataclass(frozen=True, slots=True)
class Plot:
    """One plot.

    Attributes:
        title: stands over it.
        draw: returns it as SVG text.
        rank: where not all plots of a table have room, those of lower rank stay.
    """

    title: str
    draw: Callable[[], str]
    rank: int


@dataclass(frozen=True, slots=True)
class Group:
    """Plots under one heading.

    Attributes:
        heading: stands over them.
        plots: in the order in which they are shown.
        note: what a reader must know of them; empty if nothing.
    """

    heading: str
    plots: list[Plot]
    note: str = ""
