"""The rules of all interfaces at once: they give credit, and learn from the messages that have arrived.

All tensors here have a leading dimension of rows, one row for each interface of each run.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from ...core import ConfigError, Info, Message, Rule
from ...rules import LocalLoss, SyntheticGradient
from ...rules.context_input import encode
from ...rules.models import ConvolutionalModel
from .comparison import is_same_value
from .labels import check_contexts
from .stack import Stack
from .storage import GradientTable

__all__ = [
    "BatchedLocalLoss",
    "BatchedNoBackprop",
    "BatchedSyntheticGradient",
    "Credits",
    "InterfaceRows",
    "StackedRules",
]


class InterfaceRows(NamedTuple):
    """The activations that have crossed all interfaces in one step.

    Attributes:
        h: the activations, ``(n, B, ...)``, detached.
        contexts: the contexts, ``(n, B, ...)``, or None.
        reached: the number of rows that a batch has reached, which are the first ones; the others have no
            meaning.
        infos: what is known of each row, if the rules are asked one by one; otherwise empty.
        shares: the shares of the examples in the criterion, ``(n, B)``, if tokens are counted; otherwise None.
    """

    h: Tensor
    contexts: Tensor | None
    reached: int
    infos: Sequence[Info] = ()
    shares: Tensor | None = None


class Credits(NamedTuple):
    """The credits of all rules.

    Attributes:
        delta: ``(n, B, ...)``, per-example units, detached; None if no rule gives credit.
        values: ``(n, B)``, the losses that the rules expect, or None.
    """

    delta: Tensor | None
    values: Tensor | None = None


class StackedRules(Protocol):
    """The rules of all interfaces.

    Attributes:
        listens: whether they learn from messages.
        sequential: whether they are asked one by one, and need the info of each row.
        buffers: the buffers of all rules, ``(n, ...)`` each. The engine restores the rows that no batch has
            reached.
    """

    listens: bool
    sequential: bool
    buffers: list[Tensor]

    def register(self, gradients: GradientTable, credited: Sequence[int], observed: Sequence[int]) -> None:
        """Register where gradients will be written.

        Args:
            gradients: the table to fill.
            credited: for each rule, the first step in which it gives credit.
            observed: for each rule, the first step in which it observes.
        """
        ...

    def check(self, h: Tensor, contexts: Tensor | None) -> None:
        """Refuse the newest batch, ``(runs, B, ...)``, if it cannot get credit.

        ``h`` has the shape of a message.
        """
        ...

    def credit(self, rows: InterfaceRows) -> Credits:
        """Return the credits of all rules.

        Rules that learn from their own loss also write their gradients.
        """
        ...

    def observe(self, rows: InterfaceRows, messages: Tensor, values: Sequence[Tensor | None]) -> None:
        """Write the gradients of what is learned from messages.

        Args:
            rows: what crossed the interfaces.
            messages: ``(n, B, ...)``.
            values: the losses that came with the messages, ``(B,)`` for each row.
        """
        ...


class BatchedNoBackprop:
    """`NoBackprop` at every interface."""

    listens = False
    sequential = False

    def __init__(self) -> None:
        self.buffers: list[Tensor] = []

    def register(self, gradients: GradientTable, credited: Sequence[int], observed: Sequence[int]) -> None:
        """Do nothing: these rules learn nothing."""

    def check(self, h: Tensor, contexts: Tensor | None) -> None:
        """Do nothing: any batch will do."""

    def credit(self, rows: InterfaceRows) -> Credits:
        return Credits(None)

    def observe(self, rows: InterfaceRows, messages: Tensor, values: Sequence[Tensor | None]) -> None:
        """Do nothing: these rules learn nothing."""


def _credit(rule: nn.Module, h: Tensor, c: Tensor | None) -> Tensor:
    assert isinstance(rule, SyntheticGradient)
    return rule.predict(h, Info(context=c))


def _error(rule: nn.Module, h: Tensor, c: Tensor | None, gradient: Tensor) -> Tensor:
    assert isinstance(rule, SyntheticGradient)
    return rule.observe(h, Info(context=c), Message(gradient))


class BatchedSyntheticGradient:
    """Synthetic gradients: one batched prediction for credit, and one of older activations to learn from."""

    listens = True
    sequential = False

    def __init__(self, rules: Sequence[Rule]) -> None:
        assert isinstance(rules[0], SyntheticGradient)
        self._rule = rules[0]
        self._as_features = isinstance(rules[0].model, ConvolutionalModel)
        self._stack = Stack(rules, name="the rules")
        self.buffers = self._stack.buffers

    def register(self, gradients: GradientTable, credited: Sequence[int], observed: Sequence[int]) -> None:
        self._stack.register(gradients, observed)

    def check(self, h: Tensor, contexts: Tensor | None) -> None:
        check_contexts(self._rule, self._rule.width, h, contexts, masks=True)

    def credit(self, rows: InterfaceRows) -> Credits:
        with torch.no_grad():
            return Credits(self._stack.map(_credit, rows.h, self._contexts(rows)))

    def observe(self, rows: InterfaceRows, messages: Tensor, values: Sequence[Tensor | None]) -> None:
        if self._stack.leaves:
            errors = self._stack.map(_error, rows.h, self._contexts(rows), messages)  # (n,)
            self._stack.keep(torch.autograd.grad(errors.sum(), self._stack.leaves))

    def _contexts(self, rows: InterfaceRows) -> Tensor | None:
        """Return the contexts in the form in which the batched models take them.

        One-hot rows cannot be made inside a batch of models, and a look-up in batched tables does not fail at
        an index that means no label. In both cases the contexts are encoded here.
        """
        c, rule = rows.contexts, self._rule
        if c is None or not rule.width or c.is_floating_point():
            return c
        if self._as_features or _would_not_fail(c, rule.ignore_index):
            return encode(c, rule.width, rows.h, rule.name, rule.ignore_index)
        return c


def _would_not_fail(c: Tensor, ignore: int) -> bool:
    """Return whether an index means no label, in models that would find it only by the error of a look-up."""
    return c.is_cpu and not torch.compiler.is_compiling() and bool((c == ignore).any())


def _scores(rule: nn.Module, h: Tensor) -> Tensor:
    assert isinstance(rule, LocalLoss)
    return rule.head(h)


def _losses(rule: nn.Module, h: Tensor, c: Tensor) -> Tensor:
    assert isinstance(rule, LocalLoss)
    return rule.losses(rule.head(h), c)


class BatchedLocalLoss:
    """Local losses: all classifiers as one, with one backward pass for credit and classifiers."""

    listens = False
    sequential = False

    def __init__(self, rules: Sequence[LocalLoss]) -> None:
        self._stack = Stack(rules, name="the classifiers")
        self._classes = rules[0].classes
        self._rule = rules[0]
        self.buffers = self._stack.buffers
        for rule in rules[1:]:
            # Losses that are modules have been compared already, with all other submodules of the rules.
            if not isinstance(rule.loss, nn.Module) and not is_same_value(rule.loss, self._rule.loss, set()):
                raise ConfigError(
                    f"the rules at interfaces '{self._rule.name}' and '{rule.name}' have different losses, and run as "
                    "one batch; give one loss to all, or use InProcess"
                )

    def register(self, gradients: GradientTable, credited: Sequence[int], observed: Sequence[int]) -> None:
        self._stack.register(gradients, credited)

    def check(self, h: Tensor, contexts: Tensor | None) -> None:
        looks_up = self._rule.loss is None
        check_contexts(self._rule, self._classes if looks_up else 0, h, contexts, masks=True)

    def credit(self, rows: InterfaceRows) -> Credits:
        assert rows.contexts is not None
        h = rows.h.detach().requires_grad_()  # a leaf: the credit is its gradient
        if self._rule.loss is None:
            scores = self._stack.map(_scores, h).flatten(0, 1)  # (n · B, classes)
            total = self._rule.losses(scores, rows.contexts.flatten(0, 1)).sum()
        else:  # the user's loss may be a mean over the examples of one interface, so each interface calls it alone
            total = self._stack.map(_losses, h, rows.contexts).sum()
        delta, *grads = torch.autograd.grad(total, [h, *self._stack.leaves])
        size = max(h.shape[1], 1)
        self._stack.keep([g / size for g in grads])
        return Credits(delta)

    def observe(self, rows: InterfaceRows, messages: Tensor, values: Sequence[Tensor | None]) -> None:
        """Do nothing: these rules use no messages."""
