"""Are two settings the same? Of modules' attributes, which may be anything."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from types import CellType, FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["same"]

_Known = set[tuple[int, int]]


def same(a: object, b: object, known: _Known) -> bool:
    """Are two values the same to whoever computes with them?

    Functions are where their code and all that it holds on to are; objects that know no equality where their
    attributes are. What cannot be told is not the same: a generator of random numbers, say.

    Args:
        a: anything.
        b: the other.
        known: pairs of ``id`` that count as the same; filled with those that are being compared.
    """
    if a is b or (id(a), id(b)) in known:
        return True
    if type(a) is not type(b):
        return False
    known.add((id(a), id(b)))
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return (a.shape, a.dtype, a.device) == (b.shape, b.dtype, b.device) and torch.equal(a, b)
    ours, theirs = _inside(a), _inside(b)
    if ours is None or theirs is None:
        return _equal(a, b)
    return len(ours) == len(theirs) and all(same(x, y, known) for x, y in zip(ours, theirs, strict=True))


def _inside(value: Any) -> list[Any] | None:
    """Return what a value is made of, in order; None for one that is compared as a whole."""
    if isinstance(value, Mapping):
        return [part for item in value.items() for part in item]
    if isinstance(value, list | tuple):
        return list(value)
    if isinstance(value, FunctionType):
        return [value.__code__, value.__defaults__, value.__kwdefaults__, *(value.__closure__ or ())]
    if isinstance(value, CellType):
        try:
            return [value.cell_contents]
        except ValueError:  # an empty one
            return []
    if isinstance(value, MethodType):
        # Of a module that is a part, or of something else: both have their attributes.
        return [value.__func__, value.__self__]
    if isinstance(value, partial):
        return [value.func, value.args, value.keywords]
    if isinstance(value, nn.Module) or (hasattr(value, "__dict__") and type(value).__eq__ is object.__eq__):
        return None if isinstance(value, type) else [*vars(value), *vars(value).values()]
    return None


def _equal(a: object, b: object) -> bool:
    try:
        return bool(a == b)
    except (RuntimeError, TypeError, ValueError):  # arrays, whose equality is one more array
        return False
