"""The general backend, for blocks of any kind: forward and backward of the whole stack by ``torch.vmap``."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ...core import Units
from ..base import Criterion, reduce_loss
from .backend import BackendOutput, LossValues
from .rules import BatchedNoBackprop, InterfaceRows, StackedRules
from .stack import Stack
from .storage import GradientTable, StackedParameter

__all__ = ["GeneralBackend", "TopModules"]


class TopModules:
    """The last module of each run, which learns from the true gradient.

    Args:
        modules: the last modules, one for each run.
        criterion: the user's criterion.
        units: how the criterion reduces.
        learned: the ``id`` of each parameter that learns.
        listened: whether the message for the interface below is wanted.
    """

    def __init__(
        self,
        modules: Sequence[nn.Module],
        criterion: Criterion,
        units: Units,
        learned: Collection[int],
        *,
        listened: bool,
    ) -> None:
        self._stack = Stack(modules, learned, "the last modules")
        self._criterion = criterion
        self._units = units
        self._listened = listened

    def register(self, gradients: GradientTable, since: Sequence[int]) -> None:
        """Register where the gradients will be written, and from which step on."""
        self._stack.register(gradients, since)

    @torch.enable_grad()
    def run(
        self, h: Tensor, target: Any, shares: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Learn from a batch.

        Args:
            h: the inputs of the last modules, ``(runs, B, ...)``.
            target: the target for the criterion; with several runs a tensor with a leading dimension for
                them.
            shares: the shares of the examples in the criterion, ``(runs, B)``, if tokens are counted.

        Returns:
            The losses, ``(runs,)``; the gradient of ``h`` in the criterion's units, and the loss of each
            example, ``(runs, B)``, if these are known.
        """
        # A leaf: the modules below have learned from their own credit, and need no gradient through this graph.
        fed = h.detach().requires_grad_(self._listened)
        stack = self._stack
        if stack.size == 1:
            found = self._criterion(stack(fed)[0], target).unsqueeze(0)
        else:
            found = stack.map(self._ask, fed, target)
        units = self._units
        _, values = reduce_loss(found[0], units.with_shares(None if shares is None else shares[0]))
        losses = found if values is None else units.with_shares(shares).reduce(found)
        wanted = [*stack.leaves, *([fed] if self._listened else [])]
        if wanted:
            grads = torch.autograd.grad(losses.sum(), wanted)
            stack.keep(grads[: len(stack.leaves)])
            if self._listened:
                return losses.detach(), grads[-1], None if values is None else found.detach()
        return losses.detach(), None, None if values is None else found.detach()

    def _ask(self, module: nn.Module, h: Tensor, target: Tensor) -> Tensor:
        return self._criterion(module(h), target)


class GeneralBackend:
    """The backend for blocks of any kind and rules of any kind.

    Args:
        first: the first module of each run.
        inner: the equal blocks, layer by layer and run by run within a layer.
        top: the last modules.
        rules: the rules of all interfaces.
        units: the units of the criterion.
        learned: the ``id`` of each parameter that learns.
        name: the names of the blocks, for errors.
        listened: whether messages are wanted.
    """

    def __init__(
        self,
        first: Sequence[nn.Module],
        inner: Sequence[nn.Module],
        top: TopModules,
        rules: StackedRules,
        units: Units,
        learned: Collection[int],
        *,
        name: str,
        listened: bool,
    ) -> None:
        self._runs = len(first)
        self._first = Stack(first, learned, "the first modules")
        self._inner = Stack(inner, learned, name, put_back=True)
        self._top = top
        self.rules = rules
        self._units = units
        self._listened = listened
        self.buffers = self._inner.buffers
        self.rule_buffers = rules.buffers
        self.stacked: list[StackedParameter] = []
        self.offset = self._runs  # the buffers of the first modules are not among these

    def register(self, gradients: GradientTable, depth: int, observe: int) -> None:
        runs = self._runs
        if not isinstance(self.rules, BatchedNoBackprop):
            self._first.register(gradients, [0] * runs)
            self._inner.register(gradients, [k for k in range(1, depth - 1) for _ in range(runs)])
        self._top.register(gradients, [depth - 1] * runs)
        rows = [k for k in range(depth - 1) for _ in range(runs)]
        self.rules.register(gradients, rows, [k + 1 + observe for k in rows])

    def check(self, x: Tensor) -> None:
        """Do nothing: the modules check their input when they run."""

    def run(
        self, x: Tensor, below: InterfaceRows, rows: InterfaceRows, target: Any, *, at_top: bool
    ) -> BackendOutput:
        runs = self._runs
        units = self._units.with_shares(below.shares)
        # The inputs of the inner blocks are leaves, since each block learns from its own credit.
        fed = below.h[:-runs].detach()
        with torch.set_grad_enabled(not isinstance(self.rules, BatchedNoBackprop)):
            bottom = self._first(x)
            fed.requires_grad_(self._listened)
            hs = self._inner(fed)
        # The cut: rules and the next step see the values only, and the graphs end with this step.
        h = torch.cat([bottom.detach(), hs.detach()])
        credits = self.rules.credit(rows._replace(h=h))
        back = self._backward(bottom, hs, fed, credits.delta, self._units.with_shares(rows.shares))
        losses = None
        top_message, top_values = None, None
        if at_top:
            of_top = None if below.shares is None else below.shares[-runs:]
            losses, top_message, top_values = self._top.run(below.h[-runs:], target, of_top)
        messages = None
        if self._listened:
            own = torch.zeros_like(below.h[:-runs]) if back is None else back
            top = torch.zeros_like(below.h[-runs:]) if top_message is None else top_message
            messages = units.to_example(torch.cat([own, top]), like=h[0])
        return BackendOutput(h, credits, losses, messages, self._values(credits.values, top_values, len(h)))

    def _backward(
        self, bottom: Tensor, hs: Tensor, fed: Tensor, delta: Tensor | None, units: Units
    ) -> Tensor | None:
        """Run backward from the credit; store the parameters' gradients, and return that of ``fed``."""
        if delta is None:
            return None
        scaled = units.to_criterion(delta, like=delta[0])
        pairs = [(bottom, scaled[: self._runs], self._first), (hs, scaled[self._runs :], self._inner)]
        pairs = [pair for pair in pairs if pair[0].requires_grad]
        leaves = [leaf for *_, stack in pairs for leaf in stack.leaves]
        wanted = [*leaves, *([fed] if self._listened else [])]
        if not wanted:
            return None
        grads = list(torch.autograd.grad([p[0] for p in pairs], wanted, [p[1] for p in pairs]))
        for *_, stack in pairs:
            stack.keep(grads[: len(stack.leaves)])
            del grads[: len(stack.leaves)]
        return grads[0] if self._listened else None

    def _values(self, credited: Tensor | None, top: Tensor | None, n: int) -> LossValues:
        """Return the loss values of ``n`` messages.

        They are those that the rules above expect, and at the top the losses themselves.
        """
        runs = self._runs
        expected = [None] * (n - runs) if credited is None else list(credited[runs:])
        return [*expected, *([None] * runs if top is None else top)]
