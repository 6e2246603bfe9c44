"""Compares modules, because only modules that differ in nothing but tensor values can run as one batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import zip_longest
from types import CellType, FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin

from ...core import ConfigError, Rule
from ...rules.models import GradientModel
from ..parts.sequences import has_hooks

__all__ = ["check_alike", "check_hooks", "check_stackable", "difference", "is_same_value"]

_Plain = (bool, int, float, str, tuple, type(None))
#: Attributes of every module, which are compared in other ways: tensors and submodules by their shapes, and hooks.
_OF_EVERY_MODULE = frozenset(vars(nn.Module())) - {"training"}


def check_alike(modules: Sequence[nn.Module], names: Sequence[str], what: str) -> None:
    """Refuse modules of which two differ.

    Args:
        modules: at least one module.
        names: their names, for the error.
        what: what they are, for the error: ``block``, or ``rule at interface``.

    Raises:
        ConfigError: naming the first two that differ, and the difference.
    """
    for name, module in zip(names[1:], modules[1:], strict=True):
        found = difference(modules[0], module)
        if found is not None:
            raise ConfigError(
                f"{what} '{names[0]}' and {what} '{name}' cannot run as one batch: {found}; the layer-parallel engine "
                "takes blocks of equal shape between a first and a last module; change them, or use InProcess"
            )


def check_stackable(module: nn.Module, name: str) -> None:
    """Refuse a block whose parts cannot run for many layers at once.

    Raises:
        ConfigError: naming the block.
    """
    for path, part in module.named_modules():
        is_norm = isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d)
        if is_norm and part.track_running_stats and part.momentum is None:
            raise ConfigError(
                f"block '{name}': the buffers of its part '{path}' ({type(part).__name__} with momentum=None) cannot be "
                "stacked: a cumulative average reads its count as a number; give a momentum, or use InProcess"
            )
        if isinstance(part, nn.RNNBase):
            raise ConfigError(
                f"block '{name}': PyTorch cannot run its part '{path}' ({type(part).__name__}) for many layers at once; "
                "use another module, or InProcess"
            )
        if isinstance(part, LazyModuleMixin):
            raise ConfigError(
                f"block '{name}': its part '{path}' is lazy; run a batch through the model first"
            )


def check_hooks(module: nn.Module, name: str) -> None:
    """Refuse a block with hooks: there is one call for all layers, which runs only the parts of the first.

    Raises:
        ConfigError: naming the block and the part.
    """
    for path, part in module.named_modules():
        if has_hooks(part):
            raise ConfigError(
                f"block '{name}': its part '{path}' ({type(part).__name__}) has hooks, which would not run: all layers "
                "run as one batch; take them off, or use InProcess"
            )


def difference(a: nn.Module, b: nn.Module) -> str | None:
    """Return the difference of two modules in words, or None if only the values of their tensors differ."""
    pairs: list[tuple[str, nn.Module, nn.Module]] = []
    for (path, own), (other_path, other) in _pairs(dict(a.named_modules()), dict(b.named_modules())):
        if own is None or other is None or path != other_path:
            return f"one has a part '{path or other_path}', which the other lacks"
        found = _difference_of_forms(own, other)
        if found is not None:
            return _at(path, found)
        pairs.append((path, own, other))
    if _ties(a) != _ties(b):
        return "one has parameters that are tied, and the other has not"
    for path, own, other in pairs:
        found = _difference_of_attributes(own, other)
        if found is not None:
            return _at(path, found)
    return None


def _at(path: str, found: str) -> str:
    return f"at '{path}', {found}" if path else found


def _ties(module: nn.Module) -> list[int]:
    """Return for every parameter the position of its first occurrence."""
    ids = [id(p) for _, p in module.named_parameters(remove_duplicate=False)]
    return [ids.index(own) for own in ids]


def _pairs(
    a: Mapping[str, nn.Module], b: Mapping[str, nn.Module]
) -> list[tuple[tuple[str, nn.Module | None], tuple[str, nn.Module | None]]]:
    nothing: tuple[str, nn.Module | None] = ("", None)
    return list(zip_longest(a.items(), b.items(), fillvalue=nothing))


def _difference_of_forms(a: nn.Module, b: nn.Module) -> str | None:
    if type(a) is not type(b):
        return f"{type(a).__name__} against {type(b).__name__}"
    ours, theirs = _form(a), _form(b)
    for key in sorted(ours.keys() | theirs.keys()):
        if ours.get(key) != theirs.get(key):
            return f"{key} {ours.get(key, 'missing')} against {theirs.get(key, 'missing')}"
    return None


def _difference_of_attributes(a: nn.Module, b: nn.Module) -> str | None:
    """Return which attribute differs, of those that are not plain settings.

    A difference matters, because the batched call uses the attributes of the first module for all.
    """
    if isinstance(a, Rule):
        return None  # the other attributes of a rule are caches
    ours, theirs = _others(a), _others(b)
    known = {(id(p), id(q)) for p, q in zip(_members(a), _members(b), strict=True)}
    for key in sorted(ours.keys() | theirs.keys()):
        value, other = ours.get(key), theirs.get(key)
        if not is_same_value(value, other, known):
            kind = "tensor" if isinstance(value, Tensor) else "attribute"
            return f"the {kind} {key} is not the same and no buffer"
    return None


def _members(part: nn.Module) -> list[object]:
    """Return the members that are compared on their own, in order."""
    return [*part.modules(), *part.parameters(), *part.buffers()]


def _others(part: nn.Module) -> dict[str, object]:
    """Return the attributes of a part that are not in `_form`."""
    named = _form(part).keys() | _OF_EVERY_MODULE | ({"name"} if isinstance(part, GradientModel) else set())
    return {key: value for key, value in vars(part).items() if key not in named}


def _form(part: nn.Module) -> dict[str, object]:
    """Return the settings of a part by name, and the shapes of its own tensors."""
    # The name of a rule or its model is its place, and has no influence on what it computes.
    unsaid = {"name"} if isinstance(part, Rule | GradientModel) else set[str]()
    form: dict[str, object] = {
        k: v for k, v in vars(part).items() if isinstance(v, _Plain) and k[:1] != "_" and k not in unsaid
    }
    own = [("parameter", part.named_parameters(recurse=False)), ("buffer", part.named_buffers(recurse=False))]
    for kind, tensors in own:
        for name, tensor in tensors:
            form[f"{kind} {name}"] = _shape(tensor)
    return form


def _shape(tensor: Tensor) -> str:
    frozen = isinstance(tensor, nn.Parameter) and not tensor.requires_grad
    return f"{tuple(tensor.shape)} {tensor.dtype} on {tensor.device}{' frozen' if frozen else ''}"


_Known = set[tuple[int, int]]


def is_same_value(a: object, b: object, known: _Known) -> bool:
    """Return whether two values are the same for any code that computes with them.

    Functions are the same if their code and everything that they refer to are. Objects without an equality of
    their own are the same if their attributes are. If it cannot be decided, as for a random number generator,
    the answer is False.

    Args:
        a: any value.
        b: another value.
        known: pairs of ``id`` that count as the same; the pairs that are being compared are added.
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
    return len(ours) == len(theirs) and all(
        is_same_value(x, y, known) for x, y in zip(ours, theirs, strict=True)
    )


def _inside(value: Any) -> list[Any] | None:
    """Return the components of a value, in order; None for a value that is compared as a whole."""
    if isinstance(value, Mapping):
        return [part for item in value.items() for part in item]
    if isinstance(value, list | tuple):
        return list(value)
    if isinstance(value, FunctionType):
        return [value.__code__, value.__defaults__, value.__kwdefaults__, *(value.__closure__ or ())]
    if isinstance(value, CellType):
        try:
            return [value.cell_contents]
        except ValueError:  # the cell is empty
            return []
    if isinstance(value, MethodType):
        # The object may be a submodule or anything else; in both cases its attributes are compared.
        return [value.__func__, value.__self__]
    if isinstance(value, partial):
        return [value.func, value.args, value.keywords]
    if isinstance(value, nn.Module) or (hasattr(value, "__dict__") and type(value).__eq__ is object.__eq__):
        return None if isinstance(value, type) else [*vars(value), *vars(value).values()]
    return None


def _equal(a: object, b: object) -> bool:
    try:
        return bool(a == b)
    except (
        RuntimeError,
        TypeError,
        ValueError,
    ):  # comparing two arrays gives another array instead of a bool
        return False
