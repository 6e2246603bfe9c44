"""Where the modules of a graph stand in its picture: in ranks, the input below and the loss on top.

A module stands one rank above the highest of those that feed it. What passes a rank without ending there
gets a place of its own in it, so that no line runs through a box. Within a rank the order is that in
which neighbours stand, found by going up and down a few times (the barycentre method of Sugiyama et al.
1981, IEEE SMC 11(2)).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .graph import Graph, Module

__all__ = ["Place", "layout"]

_SWEEPS = 4


@dataclass(slots=True)
class Place:
    """A place in a rank: of a module, or of an interface's line that passes by.

    Attributes:
        rank: 0 for what is fed by the data.
        module: what stands there; None for a line.
        carries: the interface whose line passes; empty for a module.
        below: keys of the places that lines come from.
        x: left edge, set by `layout`.
        width: room that it takes.
    """

    rank: int
    module: Module | None
    carries: str
    below: list[str]
    x: float = 0.0
    width: float = 0.0


def layout(graph: Graph, widths: Mapping[str, float], line: float, gap: float) -> dict[str, Place]:
    """Return the place of every module by its name, and of passing lines by ``interface@rank``.

    Args:
        graph: modules in the order of the forward pass.
        widths: room that a module takes with the rules at its ends, by name.
        line: room that a passing line takes.
        gap: between places.
    """
    places = _places(graph)
    for name, place in places.items():
        place.width = widths[name] if place.module is not None else line
    ranks = _ordered(places)
    whole = max(sum(places[n].width + gap for n in names) - gap for names in ranks)
    for names in ranks:
        x = (whole - sum(places[n].width + gap for n in names) + gap) / 2
        for name in names:
            places[name].x = x
            x += places[name].width + gap
    return places


def _places(graph: Graph) -> dict[str, Place]:
    producer = {end: module.name for module in graph.modules for end in module.ends}
    places: dict[str, Place] = {}
    for module in graph.modules:
        ranks = [places[producer[i]].rank for i in module.inputs]
        rank = 1 + max(ranks, default=-1)
        below: list[str] = []
        for interface, start in zip(module.inputs, ranks, strict=True):
            before = producer[interface]
            for passed in range(start + 1, rank):
                key = f"{interface}@{passed}"
                places.setdefault(key, Place(passed, None, interface, [before]))
                before = key
            below.append(before)
        places[module.name] = Place(rank, module, "", below)
    return places


def _ordered(places: Mapping[str, Place]) -> list[list[str]]:
    ranks: list[list[str]] = [[] for _ in range(1 + max(p.rank for p in places.values()))]
    above: dict[str, list[str]] = {name: [] for name in places}
    for name, place in places.items():
        ranks[place.rank].append(name)
        for other in place.below:
            above[other].append(name)
    for sweep in range(_SWEEPS):
        upward = sweep % 2 == 0
        for rank in ranks if upward else reversed(ranks):
            at = {name: k for names in ranks for k, name in enumerate(names)}
            centre = {
                name: _mean(
                    [at[other] for other in (places[name].below if upward else above[name])], at[name]
                )
                for name in rank
            }
            rank.sort(key=centre.__getitem__)
    return ranks


def _mean(values: Sequence[int], otherwise: int) -> float:
    """Return the mean; what has no neighbour on that side stays where it is."""
    return sum(values) / len(values) if values else otherwise
