"""The rules of all interfaces, asked at once: for credit, and to learn from the messages that have come back.

Everything here has a dimension of rows in front, one for each interface of each run.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from ...core import Info, Message, Rule
from ...rules import LocalLoss, SyntheticGradient
from ...rules.context_input import encode
from ...rules.local_loss import cross_entropies
from ...rules.models import ConvolutionalModel
from .labels import check_contexts
from .stack import Stack
from .storage import Ledger

__all__ = ["Batched", "BatchedLocalLoss", "Credits", "Nothing", "RuleRows", "Rows"]


class Rows(NamedTuple):
    """What has crossed all interfaces in one step.

    Attributes:
        h: ``(n, B, ...)``, detached.
        contexts: ``(n, B, ...)``, or None.
        reached: the rows that a batch has reached, which are the first ones; what others hold is of no meaning.
        infos: of each row, where the rules are asked in turn; else empty.
    """

    h: Tensor
    contexts: Tensor | None
    reached: int
    infos: Sequence[Info] = ()


class Credits(NamedTuple):
    """What all rules answer.

    Attributes:
        delta: ``(n, B, ...)``, per-example units, detached; None if nobody has credit.
        values: ``(n, B)``, the losses that the rules expect, or None.
    """

    delta: Tensor | None
    values: Tensor | None = None


class RuleRows(Protocol):
    """The rules of all interfaces.

    Attributes:
        listens: do they learn from messages?
        in_turn: do they want an info for each row?
        buffers: of all rules, ``(n, ...)`` each; rows that no batch has reached are put back by the engine.
    """

    listens: bool
    in_turn: bool
    buffers: list[Tensor]

    def note(self, ledger: Ledger, credited: Sequence[int], observed: Sequence[int]) -> None:
        """Say where gradients will be; given the first steps of credit and of observation for each rule."""
        ...

    def check(self, h: Tensor, contexts: Tensor | None) -> None:
        """Refuse the newest batch, ``(runs, B, ...)``, if it cannot be credited; ``h`` is of a message's shape."""
        ...

    def credit(self, rows: Rows) -> Credits:
        """Answer for all; rules that learn from their own loss leave their gradients."""
        ...

    def observe(self, rows: Rows, messages: Tensor, values: Sequence[Tensor | None]) -> None:
        """Leave the gradients of what is learned from messages, ``(n, B, ...)``, and their values, ``(B,)`` each."""
        ...


class Nothing:
    """`NoBackprop` everywhere."""

    listens = False
    in_turn = False

    def __init__(self) -> None:
        self.buffers: list[Tensor] = []

    def note(self, ledger: Ledger, credited: Sequence[int], observed: Sequence[int]) -> None:
        """Do nothing: nothing is learned."""

    def check(self, h: Tensor, contexts: Tensor | None) -> None:
        """Do nothing: nothing is asked of a batch."""

    def credit(self, rows: Rows) -> Credits:
        return Credits(None)

    def observe(self, rows: Rows, messages: Tensor, values: Sequence[Tensor | None]) -> None:
        """Do nothing: nothing is learned."""


def _credit(rule: nn.Module, h: Tensor, c: Tensor | None) -> Tensor:
    assert isinstance(rule, SyntheticGradient)
    return rule.predict(h, Info(context=c))


def _error(rule: nn.Module, h: Tensor, c: Tensor | None, gradient: Tensor) -> Tensor:
    assert isinstance(rule, SyntheticGradient)
    return rule.observe(h, Info(context=c), Message(gradient))


class Batched:
    """Synthetic gradients: one batched prediction for credit, one more, of older activations, to learn."""

    listens = True
    in_turn = False

    def __init__(self, rules: Sequence[Rule]) -> None:
        assert isinstance(rules[0], SyntheticGradient)
        self._rule = rules[0]
        self._as_features = isinstance(rules[0].model, ConvolutionalModel)
        self._stack = Stack(rules, name="the rules")
        self.buffers = self._stack.buffers

    def note(self, ledger: Ledger, credited: Sequence[int], observed: Sequence[int]) -> None:
        self._stack.note(ledger, observed)

    def check(self, h: Tensor, contexts: Tensor | None) -> None:
        check_contexts(self._rule, self._rule.width, h, contexts)

    def credit(self, rows: Rows) -> Credits:
        with torch.no_grad():
            return Credits(self._stack.map(_credit, rows.h, self._contexts(rows)))

    def observe(self, rows: Rows, messages: Tensor, values: Sequence[Tensor | None]) -> None:
        if self._stack.leaves:
            errors = self._stack.map(_error, rows.h, self._contexts(rows), messages)  # (n,)
            self._stack.keep(torch.autograd.grad(errors.sum(), self._stack.leaves))

    def _contexts(self, rows: Rows) -> Tensor | None:
        """Return the contexts as the model takes them: a one-hot row cannot be made inside a batch of models."""
        c = rows.contexts
        if c is None or not self._as_features or not self._rule.width:
            return c
        return encode(c, self._rule.width, rows.h)


def _scores(rule: nn.Module, h: Tensor) -> Tensor:
    assert isinstance(rule, LocalLoss)
    return rule.head(h)


class BatchedLocalLoss:
    """Local losses: the classifiers of all interfaces as one, and one backward pass for credit and classifiers."""

    listens = False
    in_turn = False

    def __init__(self, rules: Sequence[LocalLoss]) -> None:
        self._stack = Stack(rules, name="the classifiers")
        self._classes = rules[0].classes
        self._rule = rules[0]
        self.buffers = self._stack.buffers

    def note(self, ledger: Ledger, credited: Sequence[int], observed: Sequence[int]) -> None:
        self._stack.note(ledger, credited)

    def check(self, h: Tensor, contexts: Tensor | None) -> None:
        check_contexts(self._rule, self._classes, h, contexts)

    def credit(self, rows: Rows) -> Credits:
        assert rows.contexts is not None
        h = rows.h.detach().requires_grad_()
        scores = self._stack.map(_scores, h).flatten(0, 1)  # (n · B, classes)
        total = cross_entropies(scores, rows.contexts.flatten(0, 1), self._classes, self._rule.name).sum()
        delta, *grads = torch.autograd.grad(total, [h, *self._stack.leaves])
        size = max(h.shape[1], 1)
        self._stack.keep([g / size for g in grads])
        return Credits(delta)

    def observe(self, rows: Rows, messages: Tensor, values: Sequence[Tensor | None]) -> None:
        """Do nothing: no message is used."""
