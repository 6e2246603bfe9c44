"""Copies of models as users bring them: with intermediate results in attributes, which PyTorch refuses to copy."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from .errors import CutError

__all__ = ["copied", "refuse_lazy"]

M = TypeVar("M", bound=nn.Module)


def copied(model: M, memo: dict[int, Any] | None = None) -> M:
    """Return a deep copy of a model; a tensor with a history that it keeps in an attribute is detached in the copy.

    An attention map kept for a plot, or the weight that ``nn.utils.weight_norm`` has computed, is the result of an
    operation: ``copy.deepcopy`` takes leaves of the graph only. A copy has no use for the history.

    Args:
        model: any module; it is not changed.
        memo: as `copy.deepcopy` takes it: what stands for which object, by ``id``.
    """
    memo = {} if memo is None else memo
    kept: list[Tensor] = []  # keeps them alive, so that no other object gets their id
    for tensor in _with_history(model):
        kept.append(tensor)
        memo.setdefault(id(tensor), tensor.detach().clone())
    return copy.deepcopy(model, memo)


def refuse_lazy(model: nn.Module) -> None:
    """Refuse a model with parameters or buffers whose shape is not known yet.

    Raises:
        CutError: naming the first of them.
    """
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if is_lazy(tensor):
            raise CutError(
                f"'{name}' has no shape yet, for its module is lazy; run one batch through the model before it is "
                "decoupled"
            )


def _with_history(model: nn.Module) -> Iterator[Tensor]:
    """Yield the tensors in attributes of a model's modules that are no leaves of the autograd graph."""
    seen: set[int] = set()
    waiting: list[Any] = [model]
    while waiting:
        value = waiting.pop()
        if id(value) in seen or isinstance(value, type | str | bytes | int | float | bool | torch.Size):
            continue
        seen.add(id(value))
        if isinstance(value, Tensor):
            if not value.is_leaf:
                yield value
        elif isinstance(value, Mapping):
            waiting.extend(value.values())
        elif isinstance(value, list | tuple | set | frozenset):
            waiting.extend(value)
        elif not callable(value) or isinstance(value, nn.Module):
            waiting.extend(getattr(value, "__dict__", {}).values())
