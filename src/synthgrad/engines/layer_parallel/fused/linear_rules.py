"""Rules with a linear ``M`` at all interfaces, written out as batched products."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ....core import Rule
from ....rules.context_input import add_up
from ....rules.models import ClassMeansModel, DenseModel
from ....rules.models.class_means_model import mean_error
from ..labels import check_contexts
from ..rules import Credits, InterfaceRows
from ..storage import GradientTable, StackedParameter, stack_buffers
from .patterns import linear_models

__all__ = ["ClassMeansRules", "LinearRules", "linear_rules"]


class LinearRules:
    """Rules with a linear ``M`` at all interfaces: ``δ̂ = h Wᵀ + table[c]``, or ``+ b`` without a context.

    Args:
        rules: the rules.
        models: their models.
    """

    listens = True
    sequential = False

    def __init__(self, rules: Sequence[Rule], models: Sequence[DenseModel]) -> None:
        self._width = models[0].width
        self._rule = rules[0]
        self._weight = StackedParameter([m.first.weight for m in models])  # (n, H, H)
        # (n, classes, H), or (n, H) without a context
        self._offset = StackedParameter([m.first.bias if m.table is None else m.table for m in models])
        self.stacked = [self._weight, self._offset]
        self.buffers: list[Tensor] = []
        self._contexts = _Contexts(self._width, len(models), self._weight.values.device)

    def register(self, gradients: GradientTable, credited: Sequence[int], observed: Sequence[int]) -> None:
        for stacked_parameter in self.stacked:
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
        return self._contexts.add_product(offset, c, h, weight, 1.0)

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
        grads.view(-1, grads.shape[-1]).index_add_(0, self._contexts.index(c), error.flatten(0, 1))


class ClassMeansRules:
    """Rules with a `ClassMeansModel` at all interfaces: ``δ̂ = scale · h Wᵀ + table[c]``.

    Args:
        rules: the rules.
        models: their models.
    """

    listens = True
    sequential = False

    def __init__(self, rules: Sequence[Rule], models: Sequence[ClassMeansModel]) -> None:
        self._width = models[0].width
        self._rule = rules[0]
        self._scale, self._rate = models[0].scale, models[0].rate
        self._weight = StackedParameter([m.weight for m in models])  # (n, H, H)
        self._table = stack_buffers(models)["table"]  # (n, classes, H)
        self.stacked = [self._weight]
        self.buffers = [self._table]
        self._contexts = _Contexts(self._width, len(models), self._table.device)

    def register(self, gradients: GradientTable, credited: Sequence[int], observed: Sequence[int]) -> None:
        self._weight.register(gradients, observed)

    def check(self, h: Tensor, contexts: Tensor | None) -> None:
        check_contexts(self._rule, self._width, h, contexts)

    def credit(self, rows: InterfaceRows) -> Credits:
        return Credits(self._predict(rows.h, rows.contexts))

    def observe(self, rows: InterfaceRows, messages: Tensor, values: Sequence[Tensor | None]) -> None:
        h, c = rows.h, rows.contexts
        assert c is not None
        error = self._predict(h, c).sub_(messages)  # (n, B, H)
        change = self._mean_error(error, c) * self._rate  # (n, classes, H)
        self._table.sub_(change)
        error.sub_(self._contexts.look_up(change, c))  # what is left now that the means have moved
        error.mul_(2.0 * self._scale / max(h.shape[1], 1))
        torch.bmm(error.transpose(1, 2), h, out=self._weight.out)

    def _predict(self, h: Tensor, c: Tensor | None) -> Tensor:
        assert c is not None
        return self._contexts.add_product(self._table, c, h, self._weight.values.transpose(1, 2), self._scale)

    def _mean_error(self, error: Tensor, c: Tensor) -> Tensor:
        """Return the mean error of every class at every interface, ``(n, classes, H)``."""
        if c.is_floating_point():
            return mean_error(*add_up(error, c, self._width), num_rows=error.shape[1])
        found = add_up(error.flatten(0, 1), self._contexts.index(c), self._table.shape[0] * self._width)
        return mean_error(*found, num_rows=error.shape[1]).view(self._table.shape)


class _Contexts:
    """Looks up the rows of batched tables that contexts mean.

    Args:
        width: number of classes, or context features.
        rows: number of interfaces ``n``.
        device: of the tables.
    """

    def __init__(self, width: int, rows: int, device: torch.device) -> None:
        self._starts = width * torch.arange(rows, device=device).unsqueeze(1)
        self._indices: list[tuple[Tensor, Tensor]] = []

    def add_product(self, table: Tensor, c: Tensor, h: Tensor, weight: Tensor, scale: float) -> Tensor:
        """Return ``look_up(table, c) + scale · h weight``, ``(n, B, H)``."""
        if torch.compiler.is_compiling() and not c.is_floating_point():
            # The compiler fuses the addition, while `baddbmm` would copy.
            return torch.bmm(h, weight) * scale + self.look_up(table, c)
        return torch.baddbmm(self.look_up(table, c).to(h.dtype), h, weight, alpha=scale)

    def look_up(self, table: Tensor, c: Tensor) -> Tensor:
        """Return the rows of tables ``(n, classes, H)`` that contexts mean, ``(n, B, H)``."""
        if c.is_floating_point():
            return torch.bmm(c.to(table.dtype), table)
        return table.flatten(0, 1).index_select(0, self.index(c)).view(*c.shape, table.shape[-1])

    def index(self, c: Tensor) -> Tensor:
        """Return the rows of all tables, stacked on each other, for class indices ``(n, B)``."""
        if torch.compiler.is_compiling():
            return (c + self._starts).flatten()
        for known, index in self._indices:
            if known is c:  # the same contexts come back when their messages are observed
                return index
        index = (c + self._starts).flatten()
        self._indices = [*self._indices[-1:], (c, index)]
        return index


def linear_rules(rules: Sequence[Rule]) -> LinearRules | ClassMeansRules:
    """Return the rules of all interfaces as one object; all have a linear ``M``, see `linear_models`."""
    models = linear_models(rules)
    assert models is not None
    means = [m for m in models if isinstance(m, ClassMeansModel)]
    if means:
        return ClassMeansRules(rules, means)
    return LinearRules(rules, [m for m in models if isinstance(m, DenseModel)])
