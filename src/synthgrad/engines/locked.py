"""The plain training loop as an engine: one forward, one backward, one update, everything locked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from ..core import Decoupled, Guard, context
from .base import Criterion, OptimizerFactory, StepRecord, make_optimizer, reduced, zero_grad

__all__ = ["Locked"]


class Locked:
    """Backpropagation of a plain network, or the plain loop of a decoupled one.

    With a decoupled network the modules learn from their rules' credit, but in lock step: that is what
    an unchanged training loop does, and what the unlocked engines are compared with.

    Args:
        net: a network, decoupled or not.
        criterion: takes output and target, returns a scalar loss, or the loss of each example, ``(B,)``.
        optimizer: takes parameters, returns an optimizer.
        rule_options: options for the parameter group of the rules, such as ``{"lr": 1e-3}``.
        guard: stop with `DivergedError` at a loss that is not finite.
    """

    def __init__(
        self,
        net: nn.Module,
        criterion: Criterion,
        optimizer: OptimizerFactory,
        *,
        rule_options: Mapping[str, Any] | None = None,
        guard: bool = True,
    ) -> None:
        self.net = net
        self.criterion = criterion
        rules = list(net.rules.parameters()) if isinstance(net, Decoupled) else []
        theirs = {id(p) for p in rules}
        own = [p for p in net.parameters() if id(p) not in theirs]
        made = make_optimizer(optimizer, own, rules, rule_options)
        self.optimizers = [] if made is None else [made]
        self._guard = Guard() if guard else None
        self._step = 0

    def step(
        self, x: Tensor, y: Any, *, context: Tensor | None = None, ids: Tensor | None = None
    ) -> StepRecord:
        """Run one step on a batch.

        Args:
            x: input, ``(B, ...)``.
            y: target, as the criterion wants it.
            context: of the rules; ``y`` itself where it is a tensor and nothing else is given.
            ids: ``(B,)`` int64, which examples these are.
        """
        for optimizer in self.optimizers:
            zero_grad(optimizer)
        if isinstance(self.net, Decoupled):
            c = y if context is None and isinstance(y, Tensor) else context
            with _context(c, ids=ids, step=self._step):
                loss, _ = reduced(self.criterion(self.net(x), y), self.net.units)
                loss.backward()
        else:
            loss, _ = reduced(self.criterion(self.net(x), y), None)
            loss.backward()
        if self._guard is not None:
            self._guard.check("loss", self._step, loss.detach())
        for optimizer in self.optimizers:
            optimizer.step()
        self._step += 1
        return StepRecord(self._step - 1, loss.detach(), ["all"])

    def finish(self) -> None:
        """Read what the guard has queued.

        Raises:
            DivergedError: if a loss was not finite.
        """
        if self._guard is not None:
            self._guard.flush()

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the optimizers and the step count; the network's own is its own."""
        return {"optimizers": [o.state_dict() for o in self.optimizers], "step": self._step}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up the state that `state_dict` returned."""
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self._step = int(state["step"])


_context = context  # `step` has a keyword of the same name
