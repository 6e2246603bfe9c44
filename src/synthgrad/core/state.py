"""States of recurrent modules as flat tensors, so that a rule sees them as it sees any message.

A state is a tensor or a nest of tensors, such as the ``(h, c)`` of an ``nn.LSTM``. A rule knows messages of
shape ``(B, F)`` only. The layout is learned once, from an example, and goes both ways, with gradients.
"""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from .errors import ShapeError

__all__ = ["StateLayout"]


class StateLayout:
    """How a state is laid out in one tensor ``(B, F)``.

    The parts of the state lie side by side in the order in which they are met; within a part the dimensions
    other than the batch keep their order. So the ``(h, c)`` of an LSTM with one layer becomes ``[h, c]``.

    Args:
        example: a floating tensor, or nested tuples, lists and dicts of such, of one dtype and one batch size.
            Only its structure and shapes are kept.
        batch_dim: which dimension of every part is the batch: 0 for cells, ``(B, H)``; 1 for the states of
            ``nn.LSTM`` and ``nn.GRU``, ``(layers, B, H)``, whatever their ``batch_first`` says.

    Attributes:
        batch_dim: as given.
        num_features: ``F``.
        batch_size: of the example.
        dtype, device: of the example.

    Raises:
        ShapeError: if the example is no such state.

    >>> h, c = torch.randn(2, 4, 3), torch.randn(2, 4, 3)  # two layers, four sequences
    >>> layout = StateLayout((h, c), batch_dim=1)
    >>> layout.pack((h, c)).shape
    torch.Size([4, 12])
    >>> torch.equal(layout.unpack(layout.pack((h, c)))[1], c)
    True
    """

    def __init__(self, example: Any, batch_dim: int = 0) -> None:
        leaves, self._spec = pytree.tree_flatten(example)
        self.batch_dim = batch_dim
        if batch_dim < 0:
            raise ShapeError(f"batch_dim={batch_dim}: expected the number of a dimension, counted from 0")
        if not leaves:
            raise ShapeError("the example of a state holds nothing; give one tensor or more")
        self._check_leaves(leaves, "the example of a state")
        # Shapes without the batch, and the features that each part takes.
        self._shapes = [self._without_batch(leaf) for leaf in leaves]
        self._sizes = [prod(shape) for shape in self._shapes]
        self.num_features = sum(self._sizes)
        self.batch_size: int = leaves[0].shape[batch_dim]
        self.dtype: torch.dtype = leaves[0].dtype
        self.device: torch.device = leaves[0].device
        # The most frequent case, one tensor (B, F), is the flat tensor itself.
        self._is_flat = isinstance(example, Tensor) and example.ndim == 2 and batch_dim == 0

    def pack(self, state: Any) -> Tensor:
        """Return the state as ``(B, F)``, attached to its graph; a state that is so already, as it is.

        Args:
            state: of the structure of the example, any batch size. Not checked: see `check`.
        """
        if self._is_flat:
            return state
        leaves: list[Tensor] = pytree.tree_leaves(state)
        parts = [self._flat(leaf, size) for leaf, size in zip(leaves, self._sizes, strict=True)]
        return parts[0] if len(parts) == 1 else torch.cat(parts, 1)

    def unpack(self, flat: Tensor) -> Any:
        """Return the state that `pack` made ``flat``, ``(B, F)``, of; attached to the graph of ``flat``.

        Parts are contiguous, as fused recurrent modules want them.
        """
        if self._is_flat:
            return flat
        batch = flat.shape[0]
        parts = [
            part.reshape(batch, *shape).movedim(0, self.batch_dim).contiguous()
            for part, shape in zip(flat.split(self._sizes, 1), self._shapes, strict=True)
        ]
        return pytree.tree_unflatten(parts, self._spec)

    def batch_size_of(self, state: Any) -> int:
        """Return the batch size of a state that fits."""
        return pytree.tree_leaves(state)[0].shape[self.batch_dim]

    def check(self, state: Any, where: str, batch_size: int | None = None) -> None:
        """Raise an error unless the state has the structure and the widths of the example.

        Args:
            state: any object.
            where: what the state is, for the error: ``"the state of node 'A'"``.
            batch_size: that it must have; None for any.

        Raises:
            ShapeError: if it has another structure, a part that is no floating tensor, parts of another
                shape, or another batch size.
        """
        leaves, spec = pytree.tree_flatten(state)
        if spec != self._spec:
            raise ShapeError(
                f"{where} has the structure {_words(spec)}, expected {_words(self._spec)} as in the example; "
                "return the state in the form in which it was given"
            )
        self._check_leaves(leaves, where)
        shapes = [self._without_batch(leaf) for leaf in leaves]
        if shapes != self._shapes:
            given = ", ".join(str(tuple(leaf.shape)) for leaf in leaves)
            raise ShapeError(
                f"{where} has parts of shape {given}, expected {', '.join(map(self._expected, self._shapes))} as "
                "in the example; a state must not change its width"
            )
        found = leaves[0].shape[self.batch_dim]
        if batch_size is not None and found != batch_size:
            raise ShapeError(
                f"{where} has a batch of {found}, expected {batch_size}; begin anew where the batch changes"
            )

    def _check_leaves(self, leaves: list[Any], where: str) -> None:
        for leaf in leaves:
            if not isinstance(leaf, Tensor) or not leaf.is_floating_point():
                what = f"dtype {leaf.dtype}" if isinstance(leaf, Tensor) else f"type {type(leaf).__name__}"
                raise ShapeError(
                    f"{where} has a part of {what}, expected floating tensors, which gradients flow through; "
                    "keep counters and the like in the module"
                )
            if leaf.ndim <= self.batch_dim:
                raise ShapeError(
                    f"{where} has a part of shape {tuple(leaf.shape)}, expected one with a dimension "
                    f"{self.batch_dim} for the batch; say with batch_dim which it is"
                )
        sizes, dtypes = {leaf.shape[self.batch_dim] for leaf in leaves}, {leaf.dtype for leaf in leaves}
        if len(sizes) > 1:
            raise ShapeError(
                f"{where} has parts with batches of {' and '.join(map(str, sorted(sizes)))} along dimension "
                f"{self.batch_dim}, expected one size; say with batch_dim which dimension is the batch"
            )
        if len(dtypes) > 1:
            raise ShapeError(
                f"{where} has parts of dtypes {' and '.join(sorted(map(str, dtypes)))}, expected one; convert them"
            )

    def _without_batch(self, leaf: Tensor) -> tuple[int, ...]:
        shape = tuple(leaf.shape)
        return shape[: self.batch_dim] + shape[self.batch_dim + 1 :]

    def _flat(self, leaf: Tensor, size: int) -> Tensor:
        return leaf.movedim(self.batch_dim, 0).reshape(leaf.shape[self.batch_dim], size)  # (B, size)

    def _expected(self, shape: tuple[int, ...]) -> str:
        names = [*map(str, shape[: self.batch_dim]), "B", *map(str, shape[self.batch_dim :])]
        return f"({', '.join(names)})" if len(names) > 1 else f"({names[0]},)"


def _words(spec: Any) -> str:
    """Describe a structure, ``*`` for a tensor: ``(*, *)``."""
    if spec.is_leaf():
        return "*"
    return repr(pytree.tree_unflatten([_Star()] * spec.num_leaves, spec))


class _Star:
    """Stands for a tensor in the picture of a structure."""

    def __repr__(self) -> str:
        return "*"
