"""To which module a parameter belongs that the example did not reach: an expert without examples, a dropped layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

__all__ = ["owners"]


def owners(names: Sequence[str], known: Mapping[str, int]) -> tuple[dict[str, int], tuple[str, ...]]:
    """Find the modules of parameters by where they are registered.

    A parameter belongs to the module that owns all others of the smallest container around it of which some are known;
    where several modules share that container, to the one that owns the known parameters on both sides of it.

    Args:
        names: of all parameters, dotted, in the order in which they are registered.
        known: the number of the module, for parameters that are known.

    Returns:
        The numbers for those that were not known, and the names of those that stay unknown.

    >>> owners(["a.0.w", "a.1.w", "b.w"], {"a.0.w": 0, "b.w": 1})
    ({'a.1.w': 0}, ())
    >>> owners(["low.w", "aux.w", "top.w"], {"low.w": 0, "top.w": 1})
    ({}, ('aux.w',))
    """
    found: dict[str, int] = {}
    unknown: list[str] = []
    for name in names:
        if name in known:
            continue
        owner = _owner(name, names, known)
        if owner is None:
            unknown.append(name)
        else:
            found[name] = owner
    return found, tuple(unknown)


def _owner(name: str, names: Sequence[str], known: Mapping[str, int]) -> int | None:
    path = name.split(".")
    for depth in range(len(path) - 1, -1, -1):
        prefix = ".".join(path[:depth])
        around = [n for n in names if not prefix or n.startswith(prefix + ".")]
        if not any(n in known for n in around):
            continue
        at = around.index(name)
        if len({known[n] for n in around if n in known}) == 1:
            return known[next(n for n in around if n in known)]
        before = next((known[n] for n in reversed(around[:at]) if n in known), None)
        after = next((known[n] for n in around[at:] if n in known), None)
        if before is not None and after is not None:
            return before if before == after else None
    return None
