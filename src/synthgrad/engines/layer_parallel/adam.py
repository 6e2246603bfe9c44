"""Adam over batched parameters, as part of a step's graph.

Without a list of tensors, and without a kernel of its own.

Each row has its own step count and settings. The state is that of the optimizers, whose tensors become views
of batched tensors. The result is that of PyTorch's fused kernel, up to rounding (Kingma & Ba 2015; Loshchilov
& Hutter 2019).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from .merged import kind_of
from .storage import StackedParameter

__all__ = ["RowAdam"]

_FLAGS = ("decoupled_weight_decay", "maximize", "amsgrad")


class RowAdam:
    """Updates batched parameters from gradients inside a graph.

    Args:
        stacked: all parameters to update.
        optimizers: the optimizers of these parameters; all of them have a state.
        guarded: whether to leave out an update if losses or messages are not finite.
    """

    def __init__(
        self, stacked: Sequence[StackedParameter], optimizers: Sequence[Optimizer], *, guarded: bool
    ) -> None:
        self.stacked = stacked
        self._guarded = guarded
        self._flags = _flags(optimizers[0].param_groups[0])
        first, size = (
            stacked[0].values,
            sum(len(stacked_parameter.parameters) for stacked_parameter in stacked),
        )
        # One count for each parameter, so that an optimizer that is stepped on its own later has the right count.
        self._counts = torch.zeros(size, dtype=torch.float32, device=first.device)
        self._moments = [
            (torch.zeros_like(stacked_parameter.values), torch.zeros_like(stacked_parameter.values))
            for stacked_parameter in stacked
        ]
        self._settings = torch.zeros(size, 5, dtype=torch.float64, device=first.device)
        self._rates = torch.zeros(size, 7, dtype=first.dtype, device=first.device)
        self.adopt_state(optimizers)

    @staticmethod
    def fits(stacked: Sequence[StackedParameter], optimizers: Sequence[Optimizer]) -> bool:
        """Return whether `RowAdam` can replace these optimizers.

        It can if the stacked parameters are all their parameters, and all are Adam of one kind, without
        amsgrad.
        """
        stacked_parameter = {id(p) for each in stacked for p in each.parameters}
        groups = [(o, group) for o in optimizers for group in o.param_groups]
        if stacked_parameter != {id(p) for _, group in groups for p in group["params"]}:
            return False
        kinds = [kind_of(o, group) for o, group in groups]
        if any(kind is None or kind[0] for kind in kinds) or len({b.values.dtype for b in stacked}) > 1:
            return False
        flags = [_flags(group) for _, group in groups]
        has_states = all(len(o.state.get(p, ())) for o, group in groups for p in group["params"])
        return has_states and all(each == flags[0] for each in flags) and not flags[0][2]

    @torch.no_grad()
    def adopt_state(self, optimizers: Sequence[Optimizer]) -> bool:
        """Adopt the state and settings of the optimizers.

        Return False if they need another kind of update.
        """
        groups = {id(p): (o, g) for o in optimizers for g in o.param_groups for p in g["params"]}
        parameters = [p for stacked_parameter in self.stacked for p in stacked_parameter.parameters]
        own = [groups[id(p)] for p in parameters]
        if any(_flags(group) != self._flags for _, group in own):
            return False
        states = [o.state[p] for p, (o, _) in zip(parameters, own, strict=True)]
        _make_views(states, "step", self._counts)
        at = 0
        for stacked_parameter, moments in zip(self.stacked, self._moments, strict=True):
            some = states[at : at + len(stacked_parameter.parameters)]
            at += len(some)
            for name, moment in zip(("exp_avg", "exp_avg_sq"), moments, strict=True):
                _make_views(some, name, moment.view(len(some), *some[0][name].shape))
        rows = [(g["lr"], *g["betas"], g["eps"], g["weight_decay"]) for _, g in own]
        self._settings.copy_(torch.tensor(rows, dtype=torch.float64))
        self._rates.copy_(self._rates_at(self._counts))
        return True

    @torch.no_grad()
    def apply(self, grads: Sequence[Tensor], total: Tensor) -> None:
        """Update the parameters in place.

        Args:
            grads: the gradients of the ``values`` of each stacked parameter.
            total: not finite if something has diverged.
        """
        fine = total.isfinite() if self._guarded else None
        decoupled, maximize, _ = self._flags
        at = 0
        for stacked_parameter, given, moments in zip(self.stacked, grads, self._moments, strict=True):
            p, (mean, square) = stacked_parameter.values, moments
            within = len(stacked_parameter.parameters) // len(p)
            rows = self._rates[at : at + len(stacked_parameter.parameters) : within]
            at += len(stacked_parameter.parameters)
            columns = rows.view(-1, 7, *[1] * (p.ndim - 1)).unbind(1)
            rate, root, forget, keep, add, eps, decay = columns
            g = -given if maximize else given
            now = p * (1 - decay) if decoupled else p
            g = g if decoupled else g + decay * p
            m = mean + (g - mean) * forget
            v = square * keep + g * g * add
            now = now - rate * m / (v.sqrt() * root + eps)
            for old, new in ((p, now), (mean, m), (square, v)):
                old.copy_(new if fine is None else torch.where(fine, new, old))
        # The rates of the next step are computed per parameter here, so that no element has to compute them again.
        counts = self._counts + (1 if fine is None else fine)
        self._rates.copy_(self._rates_at(counts))
        self._counts.copy_(counts)

    def _rates_at(self, counts: Tensor) -> Tensor:
        """Return the rates for the step after ``counts`` steps, ``(parameters, 7)``."""
        lr, beta1, beta2, eps, decay = self._settings.unbind(1)
        t = counts.double() + 1
        rate = lr / (1 - beta1**t)
        root = (1 - beta2**t).rsqrt()
        decay = lr * decay if self._flags[0] else decay
        return torch.stack((rate, root, 1 - beta1, beta2, 1 - beta2, eps, decay), 1).to(self._rates.dtype)


def _flags(group: dict[str, Any]) -> list[bool]:
    return [bool(group[name]) for name in _FLAGS]


def _make_views(states: Sequence[dict[str, Any]], name: str, whole: Tensor) -> None:
    """Copy one entry of all states into one tensor, ``(n, ...)``, and make each entry a view of it."""
    parts = [state[name] for state in states]
    if all(part.data_ptr() == view.data_ptr() for part, view in zip(parts, whole, strict=True)):
        return  # they are views already
    whole.copy_(torch.stack(parts))
    for state, view in zip(states, whole.unbind(), strict=True):
        state[name] = view
