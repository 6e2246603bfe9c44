"""The updates of all modules: one optimizer for each, as everywhere, and one kernel for all of them where there is one.

An optimizer costs tens of microseconds of Python whatever its size, so a step of many layers must not step many of
them. Adam and SGD have fused kernels that take the parameters of all modules at once, each with its own count of
steps; these work on the optimizers' own state, so nobody else notices. Any other optimizer is stepped in turn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD, Adam, Optimizer

from ..base import zero_grad
from .storage import Ledger

__all__ = ["Updates"]


class Updates:
    """Steps the optimizers of all modules.

    Args:
        optimizers: one for each module, None for one that has nothing to train.
        ledger: where the gradients of their parameters are.
    """

    def __init__(self, optimizers: Sequence[Optimizer | None], ledger: Ledger) -> None:
        self.optimizers = [o for o in optimizers if o is not None]
        self._ledger = ledger
        since = ledger.since
        self._parameters = [
            [p for group in o.param_groups for p in group["params"] if id(p) in since]
            if o is not None
            else []
            for o in optimizers
        ]
        self._optimizers = optimizers
        self._first = [min((since[id(p)] for p in ps), default=None) for ps in self._parameters]
        self._whole = 1 + max((since[id(p)] for ps in self._parameters for p in ps), default=0)
        self._merged: list[_Merged] | None = None
        self._form: list[Any] = []
        self._all = [k for k, first in enumerate(self._first) if first is not None]

    def step(self, step: int) -> list[int]:
        """Update what has a gradient at this step, in place; return the positions of the modules that did."""
        if step < self._whole or self._ledger.absent or not self._merge():
            return self._in_turn(step)
        assert self._merged is not None
        for merged in self._merged:
            merged.step()
        return self._all

    def forget(self) -> None:
        """Look at the optimizers anew: their state has been loaded."""
        self._merged = None

    def _in_turn(self, step: int) -> list[int]:
        ledger, updated = self._ledger, list[int]()
        for k, (optimizer, parameters) in enumerate(zip(self._optimizers, self._parameters, strict=True)):
            any_given = False
            for p in parameters:
                given = step >= ledger.since[id(p)] and id(p) not in ledger.absent
                p.grad = ledger.grads[id(p)] if given else None
                any_given |= given
            if optimizer is not None and any_given:
                optimizer.step()
                zero_grad(optimizer)
                updated.append(k)
        return updated

    def _merge(self) -> bool:
        """Are there kernels for all optimizers at once? Looks again where a setting or a state has been changed."""
        form = [_form(o) for o in self.optimizers]
        if self._merged is None or form != self._form:
            self._form, self._merged = form, self._merge_anew()
        return bool(self._merged)

    def _merge_anew(self) -> list[_Merged]:
        """Return the kernels' arguments; an empty list where some optimizer has none."""
        found: dict[Any, _Merged] = {}
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                kind = _kind(optimizer, group)
                if kind is None:
                    return []
                parameters = [p for p in group["params"] if id(p) in self._ledger.since]
                stateless = isinstance(optimizer, SGD) and not group["momentum"]
                if not stateless and any(p not in optimizer.state for p in parameters):
                    return []
                for p in parameters:
                    key = (*kind, p.device, p.dtype)
                    merged = found.setdefault(key, _Merged(optimizer, dict(group), [], [], []))
                    merged.parameters.append(p.detach())
                    merged.grads.append(self._ledger.grads[id(p)])
                    merged.states.append({} if stateless else optimizer.state[p])
        for merged in found.values():
            merged.prepare()
        return list(found.values())


def _form(optimizer: Optimizer) -> list[Any]:
    """Return all that may be changed from outside, in a form that is quick to make and to compare."""
    hooks = len(optimizer._optimizer_step_pre_hooks) + len(optimizer._optimizer_step_post_hooks)  # pyright: ignore[reportPrivateUsage]
    return [id(optimizer.state), hooks, *(tuple(group.values()) for group in optimizer.param_groups)]


def _kind(optimizer: Optimizer, group: dict[str, Any]) -> tuple[Any, ...] | None:
    """Return what parameters must have in common to be updated by one kernel; None if there is none."""
    hooks = (optimizer._optimizer_step_pre_hooks, optimizer._optimizer_step_post_hooks)  # pyright: ignore[reportPrivateUsage]
    fits = type(optimizer) in (Adam, torch.optim.AdamW, SGD) and not any(hooks)
    # Who asks for another form of the arithmetic shall have it.
    fits = fits and group["fused"] is not False and not group["foreach"] and not group["differentiable"]
    fits = fits and not group.get("capturable") and not isinstance(group["lr"], Tensor)
    if not fits or any(p.device.type not in ("cpu", "cuda") for p in group["params"]):
        return None
    return (
        isinstance(optimizer, SGD),
        *((k, v) for k, v in group.items() if k not in ("params", "initial_lr")),
    )


@dataclass
class _Merged:
    """What one kernel updates: parameters, gradients and states of many modules, with the same settings."""

    optimizer: Optimizer
    group: dict[str, Any]
    parameters: list[Tensor]
    grads: list[Tensor]
    states: list[dict[str, Any]]

    def prepare(self) -> None:
        """Collect the states in lists. Counts of steps become one tensor, to add to in one go."""
        if isinstance(self.optimizer, SGD):
            self._momenta = [s.get("momentum_buffer") for s in self.states]
            return
        self._steps = torch.stack([s["step"] for s in self.states])
        self._counts = list(self._steps.unbind())
        for state, count in zip(self.states, self._counts, strict=True):
            state["step"] = count
        self._means, self._squares, self._largest = (
            [s[name] for s in self.states if name in s]
            for name in ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")
        )

    @torch.no_grad()
    def step(self) -> None:
        """Update in place, as the optimizers' own fused form does."""
        g = self.group
        if isinstance(self.optimizer, SGD):
            torch.ops.aten._fused_sgd_(
                self.parameters,
                self.grads,
                self._momenta if g["momentum"] else [],
                weight_decay=g["weight_decay"],
                momentum=g["momentum"],
                lr=g["lr"],
                dampening=g["dampening"],
                nesterov=g["nesterov"],
                maximize=g["maximize"],
                is_first_step=False,
            )
            return
        self._steps += 1
        kernel = (
            torch.ops.aten._fused_adamw_ if g.get("decoupled_weight_decay") else torch.ops.aten._fused_adam_
        )
        kernel(
            self.parameters,
            self.grads,
            self._means,
            self._squares,
            self._largest,
            self._counts,
            lr=g["lr"],
            beta1=g["betas"][0],
            beta2=g["betas"][1],
            weight_decay=g["weight_decay"],
            eps=g["eps"],
            amsgrad=g["amsgrad"],
            maximize=g["maximize"],
        )
