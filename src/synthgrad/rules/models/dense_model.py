"""Fully connected synthetic gradient models."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..context_input import check_context, look_up
from ..spatial import check_norm
from .base import Activation, GradientModel, set_to_zero

__all__ = ["DenseModel"]


class DenseModel(GradientModel):
    """Fully connected ``M`` on the features of ``h``, place by place: ``(B, H)``, ``(B, T, H)``, ``(B, H, Y, X)`` …

    The context enters the first layer. ``[h, onehot(c)] Wᵀ + b`` is computed as ``h W_hᵀ + table[c]``: the
    same functions, with a look-up in place of a wider product, and without a bias, which a table with a
    row for each class holds already. A context of features that do not sum to one gets no offset of
    its own: append a column of ones, and count it, if one is wanted. In ``M(h, s, c)`` the state ``s`` of the
    receiving module, ``(B, F)``, enters the first layer too, as ``+ s W_sᵀ``.

    Args:
        features: ``H``.
        hidden: widths of the hidden layers, each Linear–(BatchNorm)–activation; ``()`` is linear.
        width: number of context features.
        norm: BatchNorm in the hidden layers.
        activation: makes the hidden layers' activation.
        receiver: ``F``, features of the receiving module's state; 0 for none.
        features_at: the dimension of ``h`` that holds the features; -1 for the last one.
        name: name of the interface.
    """

    def __init__(
        self,
        features: int,
        hidden: Sequence[int],
        width: int,
        *,
        norm: bool = True,
        activation: Activation = nn.ReLU,
        receiver: int = 0,
        features_at: int = -1,
        name: str = "?",
    ) -> None:
        super().__init__(width, name)
        self.features = features
        self.receiver = receiver
        self.features_at = features_at
        sizes = [features, *hidden, features]
        self.first = nn.Linear(sizes[0], sizes[1], bias=not width)
        # (classes, units): a row for each class, so that a class index is a look-up.
        self.table = nn.Parameter(torch.empty(width, sizes[1])) if width else None
        rest: list[nn.Module] = []
        for a, b in zip(sizes[1:], sizes[2:], strict=False):
            rest += [nn.BatchNorm1d(a)] if norm else []
            rest += [activation(), nn.Linear(a, b)]
        self.rest = nn.Sequential(*rest)
        self.state = nn.Linear(receiver, sizes[1], bias=False) if receiver else None
        self.is_linear = not hidden
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise as ``nn.Linear`` on the joined input would, then set the last layer to zero."""
        bound = (self.features + self.width + self.receiver) ** -0.5
        nn.init.uniform_(self.first.weight, -bound, bound)
        offset = self.first.bias if self.table is None else self.table
        nn.init.uniform_(offset, -bound, bound)
        if self.state is not None:
            nn.init.uniform_(self.state.weight, -bound, bound)
        if len(self.rest):
            set_to_zero(self.rest[-1])
        else:
            set_to_zero(self.first)
            if self.table is not None:
                nn.init.zeros_(self.table)
            if self.state is not None:
                set_to_zero(self.state)

    def check(self, h: Tensor, c: Tensor | None) -> None:
        at = self.features_at
        if h.ndim < 2 or h.ndim <= at or h.shape[at] != self.features:
            before = ", ".join(["B", *["_"] * (at - 1)])
            self._refuse(h, f"(..., {self.features})" if at < 0 else f"({before}, {self.features}, ...)")
        if self.width:
            check_context(c, self.width, h if at < 0 else h.movedim(at, -1), self.name)
        check_norm(self, h.numel() // self.features, h, self.name)

    def forward(self, h: Tensor, c: Tensor | None = None, s: Tensor | None = None) -> Tensor:
        if self.features_at < 0:
            return self._on_last(h, c, s)
        return self._on_last(h.movedim(self.features_at, -1), c, s).movedim(-1, self.features_at)

    def _on_last(self, h: Tensor, c: Tensor | None, s: Tensor | None) -> Tensor:
        """Return the prediction for ``h`` with its features last."""
        z = self._first(h, c)  # (B, ..., units)
        if self.state is not None:
            assert s is not None
            z = z + _spread(self.state(s.to(self.state.weight.dtype)), h)
        if self.is_linear:
            return z
        # BatchNorm1d wants (N, C): examples and positions are one dimension to it.
        return self.rest(z.flatten(0, -2)).view(*h.shape[:-1], self.features)

    def _first(self, h: Tensor, c: Tensor | None) -> Tensor:
        """Return the first layer on the message and the context."""
        if self.table is None or c is None:
            return self.first(h)
        if h.ndim == 2:
            return torch.addmm(self._context_term(c, self.table), h, self.first.weight.t())
        return F.linear(h, self.first.weight) + _spread(self._context_term(c, self.table), h)

    def _context_term(self, c: Tensor, table: Tensor) -> Tensor:
        """Return what the context adds to the first layer, ``(B, ..., units)``; zero where there is no label."""
        if c.is_floating_point():
            return c.to(table.dtype) @ table
        return look_up(c, table, self.name, self.ignore_index)


def _spread(z: Tensor, h: Tensor) -> Tensor:
    """Return ``z``, one row for each example, as one for all positions of that example in ``h``."""
    while z.ndim < h.ndim:
        z = z.unsqueeze(-2)
    return z
