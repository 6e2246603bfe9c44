"""Updates the parameters of many modules with one kernel.

PyTorch's fused Adam or SGD, on the optimizers' own state.

Such a kernel treats every element alone, but has a cost per tensor. So tensors that lie side by side in
memory and have the same step count are passed to it as one tensor.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD, Adam, Optimizer

__all__ = ["MergedOptimizer", "ParameterEntry", "kind_of"]


def kind_of(optimizer: Optimizer, group: dict[str, Any]) -> tuple[Any, ...] | None:
    """Return what parameters must have in common to be updated by one kernel, or None if no kernel fits."""
    fits = type(optimizer) in (Adam, torch.optim.AdamW, SGD)
    # If the user has chosen another implementation of the optimizer, it is used.
    fits = fits and group["fused"] is not False and not group["foreach"] and not group["differentiable"]
    fits = fits and not group.get("capturable") and not isinstance(group["lr"], Tensor)
    if not fits or any(p.device.type not in ("cpu", "cuda") for p in group["params"]):
        return None
    return (
        isinstance(optimizer, SGD),
        *((k, v) for k, v in group.items() if k not in ("params", "initial_lr")),
    )


@dataclass(slots=True)
class ParameterEntry:
    """A parameter, its gradient, and its state in the optimizer, which may be empty."""

    parameter: Tensor
    grad: Tensor
    state: dict[str, Any]

    def is_followed_by(self, other: ParameterEntry) -> bool:
        """Return whether another entry lies directly behind this one, with all its tensors."""
        same = _is_adjacent(self.parameter, other.parameter) and _is_adjacent(self.grad, other.grad)
        count = self.state.get("step")
        return same and (count is None or bool(count == other.state["step"]))


def _is_adjacent(a: Tensor, b: Tensor) -> bool:
    in_order = a.is_contiguous() and b.is_contiguous()
    same = a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr()
    return in_order and same and a.storage_offset() + a.numel() == b.storage_offset()


class MergedOptimizer:
    """One kernel that updates several parameters.

    Args:
        optimizer: one of the optimizers, which determines the kind of kernel.
        groups: the parameter groups, of equal settings.
        entries: the parameters to update. Their states are moved into tensors that lie side by side like the
            parameters.
    """

    def __init__(
        self, optimizer: Optimizer, groups: Sequence[dict[str, Any]], entries: Sequence[ParameterEntry]
    ) -> None:
        self._optimizer = optimizer
        self._groups = groups
        self._settings = dict(groups[0])
        runs: list[list[ParameterEntry]] = []
        for entry in sorted(entries, key=lambda e: e.parameter.data_ptr()):
            if runs and runs[-1][-1].is_followed_by(entry):
                runs[-1].append(entry)
            else:
                runs.append([entry])
        # Detached, so that the kernel may change leaves of autograd in place.
        self._parameters = [_span([e.parameter.detach() for e in run]) for run in runs]
        self._grads = [_span([e.grad for e in run]) for run in runs]
        states = [[e.state for e in run] for run in runs]
        if isinstance(optimizer, SGD):
            self._momenta = _joined(states, "momentum_buffer") if self._settings["momentum"] else []
            return
        # The counts become one tensor, so that one addition is enough. Each parameter's count is a view of it.
        flat = [state for run in states for state in run]
        # An optimizer that is not fused keeps its counts on the CPU, where a CUDA kernel cannot read them.
        counts = torch.stack([state["step"] for state in flat])
        self._steps = counts.to(entries[0].parameter.device, torch.float32)
        for state, count in zip(flat, self._steps.unbind(), strict=True):
            state["step"] = count
        self._counts = [run[0]["step"] for run in states]
        self._means, self._squares = _joined(states, "exp_avg"), _joined(states, "exp_avg_sq")
        self._largest = _joined(states, "max_exp_avg_sq") if self._settings["amsgrad"] else []

    def refresh_settings(self) -> bool:
        """Adopt the present settings of the groups.

        Return False if they differ among groups or need another state.
        """
        kinds = [kind_of(self._optimizer, group) for group in self._groups]
        if kinds[0] is None or any(kind != kinds[0] for kind in kinds):
            return False
        now = self._groups[0]
        if any(bool(now.get(k)) != bool(self._settings.get(k)) for k in ("amsgrad", "momentum")):
            return False
        self._settings = dict(now)
        return True

    @torch.no_grad()
    def step(self) -> None:
        """Update in place, like the fused implementation of the optimizers."""
        s = self._settings
        if isinstance(self._optimizer, SGD):
            torch._fused_sgd_(  # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage, reportCallIssue]
                self._parameters,
                self._grads,
                self._momenta,
                weight_decay=s["weight_decay"],
                momentum=s["momentum"],
                lr=s["lr"],
                dampening=s["dampening"],
                nesterov=s["nesterov"],
                maximize=s["maximize"],
                is_first_step=False,
            )
            return
        self._steps += 1
        adam, adamw = torch._fused_adam_, torch._fused_adamw_  # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage]
        (adamw if s.get("decoupled_weight_decay") else adam)(
            self._parameters,
            self._grads,
            self._means,
            self._squares,
            self._largest,
            self._counts,
            lr=s["lr"],
            beta1=s["betas"][0],
            beta2=s["betas"][1],
            weight_decay=s["weight_decay"],
            eps=s["eps"],
            amsgrad=s["amsgrad"],
            maximize=s["maximize"],
        )


def _span(parts: Sequence[Tensor]) -> Tensor:
    """Return tensors that lie side by side as one tensor."""
    if len(parts) == 1:
        return parts[0]
    return parts[0].as_strided((sum(p.numel() for p in parts),), (1,), parts[0].storage_offset())


def _joined(runs: Sequence[Sequence[dict[str, Any]]], name: str) -> list[Tensor]:
    """Move one entry of the states side by side, and make each entry a view of it.

    Return one tensor for each run.
    """
    found: list[Tensor] = []
    for run in runs:
        parts: list[Tensor] = [state[name] for state in run]
        if len(parts) > 1:
            whole = torch.cat([part.reshape(-1) for part in parts])
            split = whole.split([part.numel() for part in parts])
            for state, part, view in zip(run, parts, split, strict=True):
                state[name] = view.view(part.shape)
            found.append(whole)
        else:
            found.append(parts[0])
    return found
