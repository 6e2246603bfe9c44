"""Rules with a linear ``M`` at all interfaces, written out as batched products."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ....core import Rule
from ..labels import check_contexts
from ..rules import Credits, InterfaceRows
from ..storage import GradientTable, StackedParameter
from .patterns import linear_models

__all__ = ["LinearRules"]


class LinearRules:
    """Rules with a linear ``M`` at all interfaces: ``δ̂ = h Wᵀ + table[c]``, or ``+ b`` without a context."""

    listens = True
    sequential = False

    def __init__(self, rules: Sequence[Rule]) -> None:
        models = linear_models(rules)
        assert models is not None
        self._width = models[0].width
        self._rule = rules[0]
        self._weight = StackedParameter([m.first.weight for m in models])  # (n, H, H)
        # (n, classes, H), or (n, H) without a context
        self._offset = StackedParameter([m.first.bias if m.table is None else m.table for m in models])
        rows = torch.arange(len(models), device=self._weight.values.device)
        self._starts = self._width * rows.unsqueeze(1)
        self.stacked = [self._weight, self._offset]
        self._indices: list[tuple[Tensor, Tensor]] = []
        self.buffers: list[Tensor] = []

    def register(self, gradients: GradientTable, credited: Sequence[int], observed: Sequence[int]) -> None:
        for stacked_parameter in (self._weight, self._offset):
            stacked_parameter.register(gradients, observed)

    def check(self, h: Tensor, contexts: Tensor | None) -> None:
        check_contexts(self._rule, self._width, h, contexts)

    def credit(self, rows: InterfaceRows) -> Credits:
        return Credits(self._predict(rows.h, rows.contexts))

    def observe(self, rows: InterfaceRows, messages: Tensor, values: Sequence[Tensor | None]) -> None:
        h, c = rows.h, rows.contexts
        error = self._predict(h, c).sub_(messages).mul_(2.0 / max(h.shape[1], 1))  # (n, B, H)
        torch.bmm(error.transpose(1, 2), h, out=self._weight.out)
        self._keep_offset(error, c)

    def _predict(self, h: Tensor, c: Tensor | None) -> Tensor:
        weight, offset = self._weight.values.transpose(1, 2), self._offset.values
        if not self._width:
            return torch.baddbmm(offset.unsqueeze(1), h, weight)
        assert c is not None
        if c.is_floating_point():
            return torch.baddbmm(torch.bmm(c.to(h.dtype), offset), h, weight)
        found = offset.flatten(0, 1).index_select(0, self._index(c)).view(h.shape)
        if torch.compiler.is_compiling():  # the compiler fuses the addition, while `baddbmm` would copy
            return torch.bmm(h, weight) + found
        return torch.baddbmm(found, h, weight)

    def _keep_offset(self, error: Tensor, c: Tensor | None) -> None:
        grads = self._offset.out
        if not self._width:
            torch.sum(error, 1, out=grads)
            return
        assert c is not None
        if c.is_floating_point():
            torch.bmm(c.to(error.dtype).transpose(1, 2), error, out=grads)
            return
        grads.zero_()
        grads.view(-1, grads.shape[-1]).index_add_(0, self._index(c), error.flatten(0, 1))

    def _index(self, c: Tensor) -> Tensor:
        """Return the rows of all tables, stacked on each other, for class indices ``(n, B)``."""
        if torch.compiler.is_compiling():
            return (c + self._starts).flatten()
        for known, index in self._indices:
            if known is c:  # the same contexts come back when their messages are observed
                return index
        index = (c + self._starts).flatten()
        self._indices = [*self._indices[-1:], (c, index)]
        return index
