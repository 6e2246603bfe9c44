"""The structure of a network's inputs, for processes that run one part and need some inputs as shapes
only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from ...core import ShapeError
from ..base import ForwardArgs
from .absent import AbsentScope, make_absent

__all__ = ["InputSpec", "TensorSpec"]


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """What the tensors at one place among the inputs have in common in all batches.

    Attributes:
        ndim, dtype: the number of dimensions and the dtype.
        needed: whether parts above the first need the values; otherwise they need the shape only.
    """

    ndim: int
    dtype: torch.dtype
    needed: bool


class InputSpec:
    """The structure of a network's inputs, taken from its example.

    Args:
        passed: the example.
        needed: for each tensor among the inputs, whether its values are needed; None if all are.

    Attributes:
        tensor_specs: the specs of the tensors, in order.
    """

    def __init__(self, passed: ForwardArgs, needed: Sequence[bool] | None = None) -> None:
        leaves, self._spec = pytree.tree_flatten((passed[0], dict(passed[1])))
        self._constants = [None if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        self._at = [k for k, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
        flags = [True] * len(self._at) if needed is None else list(needed)
        self.tensor_specs = [
            TensorSpec(leaves[k].ndim, leaves[k].dtype, flag) for k, flag in zip(self._at, flags, strict=True)
        ]

    def tensors(self, passed: ForwardArgs) -> list[Tensor]:
        """Return the input tensors of a batch, in order.

        Raises:
            ShapeError: if the inputs do not have the structure of the example.
        """
        leaves, spec = pytree.tree_flatten((passed[0], dict(passed[1])))
        if spec != self._spec:
            raise ShapeError(
                f"the network was given {_words(passed)}, and {_words(self._example())} in the example: every process "
                "builds the inputs of its part from that form; pass the same arguments in all batches, and give such an "
                "example to decouple"
            )
        for k, (leaf, constant) in enumerate(zip(leaves, self._constants, strict=True)):
            if k in self._at and isinstance(leaf, Tensor):
                continue
            if k in self._at or isinstance(leaf, Tensor) or not _same(leaf, constant):
                raise ShapeError(
                    f"an argument of the network is {_word(leaf)}, and was {_word(constant)} in the example: only tensors "
                    "are sent to other processes, all else must stay as it was"
                )
        found = [leaves[k] for k in self._at]
        for t, spec in zip(found, self.tensor_specs, strict=True):
            if t.ndim != spec.ndim or t.dtype != spec.dtype:
                raise ShapeError(
                    f"an input of the network has {t.ndim} dimensions of {t.dtype}, and had {spec.ndim} of {spec.dtype} "
                    "in the example; give batches like it"
                )
        return found

    def passed(self, tensors: Sequence[Tensor], scope: AbsentScope | None) -> ForwardArgs:
        """Return the arguments for a forward pass.

        Above the first part, tensors whose values are not needed are absent.
        """
        leaves = list(self._constants)
        for k, t, spec in zip(self._at, tensors, self.tensor_specs, strict=True):
            own = t if spec.ndim else t.reshape(())  # a scalar is sent as a tensor with one row
            leaves[k] = own if spec.needed or scope is None else make_absent(own, scope)
        return pytree.tree_unflatten(leaves, self._spec)

    def _example(self) -> ForwardArgs:
        leaves = ["tensor" if k in self._at else c for k, c in enumerate(self._constants)]
        return pytree.tree_unflatten(leaves, self._spec)


def _same(a: Any, b: Any) -> bool:
    try:
        return a is b or bool(a == b)
    except (RuntimeError, TypeError, ValueError):
        return False


def _word(value: Any) -> str:
    return "a tensor" if isinstance(value, Tensor) else repr(value)[:40]


def _words(passed: ForwardArgs) -> str:
    args, kwargs = passed
    return f"{len(args)} positional arguments and the keywords {sorted(kwargs) or 'none'}"
