"""Are modules equal in everything but the values of their tensors? Only then can they run as one batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import zip_longest

import torch
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin

from ...core import ConfigError

__all__ = ["check_alike", "check_stackable", "difference"]

_Plain = (bool, int, float, str, tuple, type(None))


def check_alike(modules: Sequence[nn.Module], names: Sequence[str], what: str) -> None:
    """Refuse modules of which two differ.

    Args:
        modules: at least one.
        names: their names, for the error.
        what: what they are: ``block``, or ``rule at interface``.

    Raises:
        ConfigError: naming the first two that differ, and in what.
    """
    for name, module in zip(names[1:], modules[1:], strict=True):
        found = difference(modules[0], module)
        if found is not None:
            raise ConfigError(
                f"{what} '{names[0]}' and {what} '{name}' cannot run as one batch: {found}; the layer-parallel engine "
                "takes blocks of equal shape between a first and a last module; change them, or use InProcess"
            )


def check_stackable(module: nn.Module, name: str) -> None:
    """Refuse a block whose buffers cannot be updated for many layers at once.

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
        if isinstance(part, LazyModuleMixin):
            raise ConfigError(
                f"block '{name}': its part '{path}' is lazy; run a batch through the model first"
            )


def difference(a: nn.Module, b: nn.Module) -> str | None:
    """Return in what two modules differ, in words; None if in nothing but the values of their tensors."""
    for (path, own), (other_path, other) in _pairs(dict(a.named_modules()), dict(b.named_modules())):
        if own is None or other is None or path != other_path:
            return f"one has a part '{path or other_path}', which the other lacks"
        found = _difference_of_parts(own, other)
        if found is not None:
            return f"at '{path}', {found}" if path else found
    return None


def _pairs(
    a: Mapping[str, nn.Module], b: Mapping[str, nn.Module]
) -> list[tuple[tuple[str, nn.Module | None], tuple[str, nn.Module | None]]]:
    nothing: tuple[str, nn.Module | None] = ("", None)
    return list(zip_longest(a.items(), b.items(), fillvalue=nothing))


def _difference_of_parts(a: nn.Module, b: nn.Module) -> str | None:
    if type(a) is not type(b):
        return f"{type(a).__name__} against {type(b).__name__}"
    ours, theirs = _form(a), _form(b)
    for key in sorted(ours.keys() | theirs.keys()):
        if ours.get(key) != theirs.get(key):
            return f"{key} {ours.get(key, 'missing')} against {theirs.get(key, 'missing')}"
    for key, value in vars(a).items():
        other = vars(b).get(key)
        # A tensor that is neither parameter nor buffer would be that of the first block for all.
        if isinstance(value, Tensor) and not (isinstance(other, Tensor) and torch.equal(value, other)):
            return f"the tensor {key} is not the same and no buffer"
    return None


def _form(part: nn.Module) -> dict[str, object]:
    """Return what says what a part computes, by name: settings, and the shapes of its own tensors."""
    # Its name says where a rule or its model sits, not what it does.
    form: dict[str, object] = {
        k: v for k, v in vars(part).items() if isinstance(v, _Plain) and k[:1] != "_" and k != "name"
    }
    own = [("parameter", part.named_parameters(recurse=False)), ("buffer", part.named_buffers(recurse=False))]
    for kind, tensors in own:
        for name, tensor in tensors:
            form[f"{kind} {name}"] = _shape(tensor)
    return form


def _shape(tensor: Tensor) -> str:
    frozen = isinstance(tensor, nn.Parameter) and not tensor.requires_grad
    return f"{tuple(tensor.shape)} {tensor.dtype}{' frozen' if frozen else ''}"
