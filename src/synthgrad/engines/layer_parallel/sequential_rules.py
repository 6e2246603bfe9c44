"""Rules of any kind in a batched engine: they are asked one interface after the other."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...core import ConfigError, Message, Rule
from ...rules import LocalLoss, NoBackprop, SyntheticGradient
from .rules import (
    BatchedLocalLoss,
    BatchedNoBackprop,
    BatchedSyntheticGradient,
    Credits,
    InterfaceRows,
    StackedRules,
)
from .storage import GradientTable

__all__ = ["SequentialRules", "stack_rules"]


class SequentialRules:
    """Rules of any kind: the layers run as one batch, the rules one by one."""

    sequential = True

    def __init__(self, rules: Sequence[Rule]) -> None:
        self.listens = any(rule.listens for rule in rules)
        self.buffers: list[
            Tensor
        ] = []  # rows that no batch has reached are not asked, so none have to be restored
        self._rules = rules
        self._parameters = [[p for p in rule.parameters() if p.requires_grad] for rule in rules]
        self._gradients = GradientTable()

    def register(self, gradients: GradientTable, credited: Sequence[int], observed: Sequence[int]) -> None:
        self._gradients = gradients
        for rule, parameters, *since in zip(self._rules, self._parameters, credited, observed, strict=True):
            for p in parameters:
                gradients.register(
                    [p], torch.zeros_like(p, requires_grad=False).unsqueeze(0), [since[rule.listens]]
                )

    def check(self, h: Tensor, contexts: Tensor | None) -> None:
        """Do nothing: each rule checks its input when it is asked."""

    def credit(self, rows: InterfaceRows) -> Credits:
        asked = zip(self._rules[: rows.reached], rows.h, rows.infos, self._parameters, strict=False)
        deltas: list[Tensor | None] = []
        values: list[Tensor | None] = []
        for rule, h, info, parameters in asked:
            rule.check(h, info)
            credit = rule.credit(h, info)
            if not rule.listens:
                self._learn(credit.loss, parameters)
            elif credit.loss is not None:
                raise ConfigError(
                    f"the rule at interface '{rule.name}' learns from a loss of its own and from messages: the "
                    "layer-parallel engine supports rules that do one of the two; use InProcess"
                )
            deltas.append(credit.delta)
            values.append(credit.value)
        return Credits(*(_joined(parts, len(rows.h), self._rules) for parts in (deltas, values)))

    def observe(self, rows: InterfaceRows, messages: Tensor, values: Sequence[Tensor | None]) -> None:
        if not self.listens:
            return
        for k, rule in enumerate(self._rules[: rows.reached]):
            with torch.enable_grad():
                loss = rule.observe(rows.h[k], rows.infos[k], Message(messages[k], values[k]))
            self._learn(loss, self._parameters[k])

    def _learn(self, loss: Tensor | None, parameters: Sequence[Tensor]) -> None:
        """Store the gradients of a loss, and note the parameters that it does not depend on."""
        grads: Sequence[Tensor | None] = [None] * len(parameters)
        if loss is not None and loss.requires_grad and parameters:
            grads = torch.autograd.grad(loss, parameters, allow_unused=True)
        for p, grad in zip(parameters, grads, strict=True):
            if grad is None:
                self._gradients.absent.add(id(p))
            else:
                self._gradients.grads[id(p)].copy_(grad)


def _joined(parts: Sequence[Tensor | None], rows: int, rules: Sequence[Rule]) -> Tensor | None:
    """Return the results of the rules as one tensor, or None if there are none.

    Rows that no batch has reached are zero.
    """
    given = [part for part in parts if part is not None]
    if not given:
        return None
    if len(given) < len(parts):
        silent = next(rule.name for rule, part in zip(rules, parts, strict=False) if part is None)
        raise ConfigError(
            f"the rule at interface '{silent}' gave no credit in a step in which others did: layers that learn as one "
            "batch cannot leave one out; use InProcess"
        )
    rest = [torch.zeros_like(given[0])] * (rows - len(given))
    return torch.stack([*given, *rest])


def stack_rules(rules: Sequence[Rule]) -> StackedRules:
    """Return the rules of all interfaces as one object, in the fastest form that fits.

    The fast forms are for exact types only: a subclass may compute something else, so it is asked one by one.
    """
    kinds = {type(rule) for rule in rules}
    if kinds == {NoBackprop}:
        return BatchedNoBackprop()
    if kinds == {SyntheticGradient}:
        return BatchedSyntheticGradient(rules)
    if kinds == {LocalLoss}:
        return BatchedLocalLoss([rule for rule in rules if isinstance(rule, LocalLoss)])
    return SequentialRules(rules)
