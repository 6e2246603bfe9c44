"""The updates of all modules: one optimizer for each module, and one kernel for all of them if there is one.

Stepping an optimizer takes tens of microseconds of Python, whatever its size, so a step of many layers must
not step many optimizers. Adam and SGD have fused kernels that take the parameters of all modules at once,
each with its own step count; here they work on the optimizers' own state, so nobody else notices. Other
optimizers are stepped one by one. A compiled step may end with Adam itself, on the same state.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch.optim import SGD, Optimizer

from ..optimizers import step_optimizers
from .adam import RowAdam
from .merged import MergedOptimizer, ParameterEntry, kind_of
from .storage import GradientTable, StackedParameter

__all__ = ["Updates"]


class Updates:
    """Steps the optimizers of all modules.

    Args:
        optimizers: the optimizers of each module; an empty list for a module that has nothing to train.
        gradients: where the gradients of their parameters are written.

    Attributes:
        all: the positions of all modules that learn.
    """

    def __init__(self, optimizers: Sequence[Sequence[Optimizer]], gradients: GradientTable) -> None:
        self.optimizers = [o for own in optimizers for o in own]
        self._gradients = gradients
        since = gradients.since
        self._parameters = [
            [p for o in own for group in o.param_groups for p in group["params"] if id(p) in since]
            for own in optimizers
        ]
        self._optimizers = optimizers
        self._first = [min((since[id(p)] for p in ps), default=None) for ps in self._parameters]
        self._whole = 1 + max((since[id(p)] for ps in self._parameters for p in ps), default=0)
        self._merged: list[MergedOptimizer] | None = None
        self._fingerprints: list[_OptimizerFingerprint] = []
        self.all = [k for k, first in enumerate(self._first) if first is not None]
        self._adam: RowAdam | None = None
        self._may_be_adam = True

    def step(self, step: int) -> list[int]:
        """Update all parameters that have a gradient at this step, in place.

        Return the positions of the updated modules.
        """
        if step < self._whole or self._gradients.absent or not self._merge():
            return self._sequential(step)
        assert self._merged is not None
        for merged in self._merged:
            merged.step()
        return self.all

    def adam(self, step: int, stacked: Sequence[StackedParameter], *, guarded: bool) -> RowAdam | None:
        """Return an update that a graph can end with in place of `step`; None if `step` is needed.

        Args:
            step: the step, at which all parameters must have a gradient.
            stacked: the parameters, if the graph has them all; otherwise empty.
            guarded: see `RowAdam`. It must be the same in all calls.
        """
        if not self._may_be_adam or step < self._whole or self._gradients.absent:
            return None
        if self._adam is not None and all(fingerprint.is_current() for fingerprint in self._fingerprints):
            return self._adam
        if not stacked or any(map(_hooked, self.optimizers)) or not RowAdam.fits(stacked, self.optimizers):
            found = None
        elif self._adam is None:
            found = RowAdam(stacked, self.optimizers, guarded=guarded)
        else:  # its graph has been compiled already, so it is kept if it can adopt the state
            found = self._adam if self._adam.adopt_state(self.optimizers) else None
        self._adam, self._may_be_adam = found, found is not None
        self._merged, self._fingerprints = None, [_OptimizerFingerprint(o) for o in self.optimizers]
        return found

    def forget(self) -> None:
        """Forget the kernels: the state of the optimizers has been loaded."""
        self._merged = None

    def _sequential(self, step: int) -> list[int]:
        gradients, updated = self._gradients, list[int]()
        for k, (optimizers, parameters) in enumerate(zip(self._optimizers, self._parameters, strict=True)):
            any_given = False
            for p in parameters:
                given = step >= gradients.since[id(p)] and id(p) not in gradients.absent
                p.grad = gradients.grads[id(p)] if given else None
                any_given |= given
            if any_given:
                step_optimizers(optimizers)
                updated.append(k)
        return updated

    def _merge(self) -> bool:
        """Return whether there are kernels for all optimizers.

        The kernels are rebuilt if a setting or a state has changed.
        """
        if self._merged is None or not all(fingerprint.is_current() for fingerprint in self._fingerprints):
            loaded = self._merged is None or not all(
                fingerprint.is_current_state() for fingerprint in self._fingerprints
            )
            self._fingerprints = [_OptimizerFingerprint(o) for o in self.optimizers]
            # A learning-rate schedule changes settings in every step: then the kernels keep their tensors, if possible.
            if loaded or not self._merged or not all(merged.refresh_settings() for merged in self._merged):
                self._merged = self._merge_anew()
        return bool(self._merged)

    def _merge_anew(self) -> list[MergedOptimizer]:
        """Return the kernels with their arguments; an empty list if an optimizer has none."""
        entries: dict[Any, list[ParameterEntry]] = {}
        groups: dict[Any, list[dict[str, Any]]] = {}
        owners: dict[Any, Optimizer] = {}
        for optimizer in self.optimizers:
            if _hooked(optimizer):
                return []
            for group in optimizer.param_groups:
                kind = kind_of(optimizer, group)
                parameters = [p for p in group["params"] if id(p) in self._gradients.since]
                has_state = not isinstance(optimizer, SGD) or bool(group["momentum"])
                if kind is None or (has_state and any(p not in optimizer.state for p in parameters)):
                    return []
                for p in parameters:
                    key = (*kind, p.device, p.dtype)
                    owners.setdefault(key, optimizer)
                    if not any(group is known for known in groups.setdefault(key, [])):
                        groups[key].append(group)
                    entry = ParameterEntry(
                        p, self._gradients.grads[id(p)], optimizer.state[p] if has_state else {}
                    )
                    entries.setdefault(key, []).append(entry)
        return [MergedOptimizer(owners[key], groups[key], found) for key, found in entries.items()]


class _OptimizerFingerprint:
    """The settings and state of an optimizer at one time, to find out quickly if they have changed since."""

    def __init__(self, optimizer: Optimizer) -> None:
        self._optimizer = optimizer
        self._state = optimizer.state
        self._hooked = _hooked(optimizer)
        self._groups = [dict(group) for group in optimizer.param_groups]

    def is_current(self) -> bool:
        """Return whether nothing has changed."""
        return self._optimizer.param_groups == self._groups and self.is_current_state()

    def is_current_state(self) -> bool:
        """Return whether the state is still the same object, and the hooks are as before."""
        return self._optimizer.state is self._state and _hooked(self._optimizer) == self._hooked


def _hooked(optimizer: Optimizer) -> bool:
    """Return whether an optimizer has hooks, which only its own ``step`` runs."""
    return bool(optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks)  # pyright: ignore[reportPrivateUsage]
