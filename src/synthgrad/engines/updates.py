"""Makes the updates of modules: from the gradient of one batch, or from those of several microbatches."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from ..core import ConfigError
from ..optim import ErrorFeedback
from .optimizers import has_gradient, step_optimizers
from .ties import Ties

__all__ = ["Updates"]


class Updates:
    """Collects the gradients of each module and of the rules that are updated with it, and steps the optimizers.

    An update is the mean of the gradients of ``size`` microbatches, those of steps ``u size`` to ``(u + 1) size - 1``. A
    module that learns ``d`` steps late makes it ``ceil(d / size)`` updates late, at the end of a group of steps, so that
    its weights change between groups only and all gradients of an update have one age (2BW, Narayanan et al. 2021).
    With one version of the weights (PACI) it is made as soon as its last gradient has come.

    Args:
        names: the names of the modules.
        own: the parameters of each module itself, without those of rules.
        optimizers: the optimizers of each module.
        delays: the steps after which each module learns, see `learning_delays`.
        size: number of microbatches in an update.
        ties: take the gradients of parameters that several modules use; None if there are none.
        before: called before each update is made, with the gradients in place: to clip or to average them. Also where there
            is nothing to learn from, so that processes which call it together stay together.
        versions: number of versions of the weights: 1, 2, or None for as many as are in use.

    Attributes:
        made: the number of updates that each module has made.

    Raises:
        ConfigError: if two versions are asked for, and a gradient would be more than one update late.
    """

    def __init__(
        self,
        names: Sequence[str],
        own: Sequence[Sequence[Tensor]],
        optimizers: Sequence[Sequence[Optimizer]],
        delays: Sequence[int],
        size: int,
        versions: int | None,
        before: Callable[[], object] | None = None,
        ties: Ties | None = None,
    ) -> None:
        self._before = before
        self._ties = ties
        self._own = own
        self._own_ids = [{id(p) for p in ps} for ps in own]
        self._optimizers = optimizers
        self._delays = delays
        self._size = size
        self._versions = versions
        self.late = [-(-delay // size) for delay in delays]
        if versions == 2:
            for name, delay in zip(names, delays, strict=True):
                if delay > size:
                    raise ConfigError(
                        f"accumulate={size}: module '{name}' learns {delay} microbatches after its forward pass, and with "
                        f"versions=2 no gradient may be more than one update late; take accumulate={delay} or more, or "
                        "versions=None, which keeps every version that is in use"
                    )
        n = len(names)
        self.made = [0] * n
        # Sums of gradients by parameter: of modules by group of steps, of rules and of corrections since the last update.
        self._sums: list[dict[int, dict[int, Tensor]]] = [{} for _ in range(n)]
        self._rules: list[dict[int, Tensor]] = [{} for _ in range(n)]
        self._corrections: list[dict[int, Tensor]] = [{} for _ in range(n)]

    @property
    def accumulates(self) -> bool:
        """Whether an update is made of more than one microbatch."""
        return self._size > 1

    def made_by(self, k: int) -> int:
        """Return how often the weights of a module have changed, those included that it shares with others."""
        return self.made[k] + (0 if self._ties is None else self._ties.made)

    def turn(self, k: int, step: int) -> bool:
        """Let a module make its update from the batch of a step before corrections of earlier ones come; return whether it did."""
        return self.add(k, step, step, learned=has_gradient(self._optimizers[k]), complete=True)

    def correct(self, k: int, grads: Sequence[Tensor | None]) -> None:
        """Add the gradients of a correction to what the module learns from in its next update.

        Args:
            k: the module.
            grads: for each of its own parameters.
        """
        for p, grad in zip(self._own[k], grads, strict=True):
            if grad is not None:
                _add(self._corrections[k], id(p), grad)

    def add(self, k: int, step: int, forward_step: int, *, learned: bool, complete: bool) -> bool:
        """Take what a module and its rules have learned, and update them if it is time.

        Args:
            k: the module.
            step: the step at hand.
            forward_step: the step of the module's forward pass.
            learned: whether any parameter has a new gradient.
            complete: whether the module itself has learned from a batch, and not only rules that are updated with it.
                Otherwise corrections, and an update of several microbatches, have to wait.

        Returns:
            Whether an update was made.
        """
        if not self._optimizers[k] and self._ties is None:
            return False
        if not self.accumulates:
            if complete:
                learned |= bool(self._corrections[k])
                self._add_corrections(k)
                self._mark(k, late=forward_step < step)
            self._take_tied(k)
            if self._before is not None:
                self._before()
            return learned and self._make(k)
        self._take_tied(k)
        if learned:
            self.take(k, forward_step)
        fresh = complete and not self._delays[k]
        return fresh and (step + 1) % self._size == 0 and self._make_group(k, step)

    def add_apart(self, k: int) -> bool:
        """Update a module from a batch of this step, before it learns from one that is late; not for several microbatches."""
        self._take_tied(k)
        if not has_gradient(self._optimizers[k]):
            return False
        self._mark(k, late=False)
        return self._make(k)

    def end_of_step(self, k: int, step: int) -> bool:
        """Update a module whose microbatches are complete, if `add` has not; return whether an update was made."""
        if not self.accumulates:
            return False
        since = step + 1 - (self._delays[k] if self._versions == 1 else 0)
        if since <= 0 or since % self._size:
            return False
        if not self._delays[k] and not self._sums[k].get(self._due_group(k, step)):
            return False  # it has made its update in its turn; what its rules have learned since is for the next one
        return self._make_group(k, step)

    def _mark(self, k: int, *, late: bool) -> None:
        """Say in the groups of a module whether its gradients are late: a rule may have it wait at times, and not at others.

        An update of several microbatches is late by the same number of updates whenever its gradients have come.
        """
        if not self._delays[k]:
            return
        for optimizer in self._optimizers[k]:
            for group in optimizer.param_groups if isinstance(optimizer, ErrorFeedback) else ():
                if any(id(p) in self._own_ids[k] for p in group["params"]):
                    group["late"] = late

    def take(self, k: int, forward_step: int) -> None:
        """Move the gradients that parameters have to the sums.

        Args:
            k: the module.
            forward_step: the step of the forward pass that they belong to.
        """
        self._take_tied(k)
        group = 0 if self._versions == 1 else forward_step // self._size
        for p in self._parameters(k):
            if p.grad is not None:
                of_rule = id(p) not in self._own_ids[k]
                _add(self._rules[k] if of_rule else self._sums[k].setdefault(group, {}), id(p), p.grad)
                p.grad = None

    def _due_group(self, k: int, step: int) -> int:
        """Return the group of steps of which a module makes its update at the end of a step."""
        return 0 if self._versions == 1 else (step + 1) // self._size - 1 - self.late[k]

    def _make_group(self, k: int, step: int) -> bool:
        """Update a module with the sums of the group of steps that is due."""
        sums = self._sums[k].pop(self._due_group(k, step), {})
        rules, self._rules[k] = self._rules[k], {}
        learned = bool(sums or rules or self._corrections[k])
        for p in self._parameters(k):
            p.grad = sums.get(id(p), rules.get(id(p)))
        self._add_corrections(k)
        self._take_tied(k)
        for p in self._parameters(k):
            if p.grad is not None:
                p.grad.div_(self._size)
        if self._before is not None:
            self._before()
        return learned and self._make(k)

    def _add_corrections(self, k: int) -> None:
        corrections = self._corrections[k]
        if corrections:
            for p in self._own[k]:
                extra = corrections.get(id(p))
                if extra is not None:
                    p.grad = extra if p.grad is None else p.grad.add_(extra)
            corrections.clear()

    def _take_tied(self, k: int) -> None:
        if self._ties is not None:
            self._ties.take(k)

    def _make(self, k: int) -> bool:
        if not self._optimizers[k]:
            return False
        step_optimizers(self._optimizers[k])
        self.made[k] += 1
        return True

    def _parameters(self, k: int) -> list[Tensor]:
        return [p for o in self._optimizers[k] for group in o.param_groups for p in group["params"]]

    def state_dict(self) -> dict[str, Any]:
        """Return the sums and the numbers of updates as plain containers of tensors."""
        return {
            "made": list(self.made),
            "sums": [
                {group: self._by_position(k, sums) for group, sums in groups.items()}
                for k, groups in enumerate(self._sums)
            ],
            "rules": [self._by_position(k, sums) for k, sums in enumerate(self._rules)],
            "corrections": [self._by_position(k, sums) for k, sums in enumerate(self._corrections)],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load what `state_dict` returned."""
        self.made = list(state["made"])
        self._sums = [
            {group: self._by_id(k, saved) for group, saved in groups.items()}
            for k, groups in enumerate(state["sums"])
        ]
        self._rules = [self._by_id(k, saved) for k, saved in enumerate(state["rules"])]
        self._corrections = [self._by_id(k, saved) for k, saved in enumerate(state["corrections"])]

    def _by_position(self, k: int, sums: Mapping[int, Tensor]) -> dict[int, Tensor]:
        return {at: sums[id(p)] for at, p in enumerate(self._parameters(k)) if id(p) in sums}

    def _by_id(self, k: int, saved: Mapping[int, Tensor]) -> dict[int, Tensor]:
        parameters = self._parameters(k)
        return {id(parameters[at]): grad for at, grad in saved.items()}


@torch.no_grad()
def _add(sums: dict[int, Tensor], key: int, grad: Tensor) -> None:
    if key in sums:
        sums[key].add_(grad)
    else:
        sums[key] = grad.detach()
