"""Stores the tensors of many modules as one.

Each module's tensor becomes a view of a slice, so nothing is copied.

The network's ``state_dict``, its evaluation, other engines and the optimizers still see ordinary parameters,
and see at once what a batched step has changed.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

__all__ = ["GradientTable", "StackedParameter", "preserving_rows", "stack_buffers", "stack_parameters"]


@dataclass
class GradientTable:
    """Where the gradient of every parameter is written, and from which step on there is one.

    Attributes:
        grads: a slice of a batched gradient, by ``id`` of the parameter.
        since: the first step with a gradient, by ``id`` of the parameter; parameters that never have one are
            missing.
        absent: the ``id`` of each parameter without a gradient in the present step.
    """

    grads: dict[int, Tensor] = field(default_factory=dict[int, Tensor])
    since: dict[int, int] = field(default_factory=dict[int, int])
    absent: set[int] = field(default_factory=set[int])

    def register(self, parameters: Sequence[Tensor], grads: Tensor, since: Sequence[int]) -> None:
        """Register that the gradients of some parameters are the slices of ``grads``, ``(n, ...)``."""
        for p, grad, first in zip(parameters, grads.unbind(), since, strict=True):
            self.grads[id(p)] = grad
            self.since[id(p)] = first


def stack_parameters(parameters: Sequence[Tensor]) -> Tensor:
    """Move parameters of one shape into one tensor, ``(n, ...)``, and make each a view of its slice.

    Args:
        parameters: at least one parameter. Its ``data`` is replaced, so all who hold it see the batched
            tensor.

    Returns:
        The batched tensor, contiguous, without a gradient.
    """
    with torch.no_grad():
        # Detached: the stacked tensor becomes the parameter itself, and is not computed from the old ones.
        stacked = torch.stack([p.detach().contiguous() for p in parameters])
    for p, view in zip(parameters, stacked.unbind(), strict=True):
        p.data = view
    return stacked


class StackedParameter:
    """Parameters of one shape as one tensor, and their gradients.

    Args:
        parameters: at least one parameter.
        within: the size of groups: this many successive parameters belong together, and lie side by side.

    Attributes:
        parameters: the parameters, which are now views.
        values, grads: ``(n, ...)``, or ``(n / within, within, ...)``.
        fresh: the gradients inside a graph that also updates, with the shape of `grads`; otherwise None.
    """

    def __init__(self, parameters: Sequence[Tensor], within: int = 1) -> None:
        self.parameters = parameters
        self._flat = stack_parameters(parameters)
        self._flat_grads = torch.zeros_like(self._flat)
        shape = (-1, within, *self._flat.shape[1:]) if within > 1 else self._flat.shape
        self.values, self.grads = self._flat.view(shape), self._flat_grads.view(shape)
        self.fresh: Tensor | None = None

    @property
    def out(self) -> Tensor:
        """The tensor that gradients are to be written to."""
        return self.grads if self.fresh is None else self.fresh

    def register(self, gradients: GradientTable, since: Sequence[int]) -> None:
        """Register where the gradients will be written, and from which step on for each parameter."""
        gradients.register(self.parameters, self._flat_grads, since)


def stack_buffers(modules: Sequence[nn.Module]) -> dict[str, Tensor]:
    """Move the buffers of modules that are alike into batched ones, ``(n, ...)``; return these by name."""
    stacked: dict[str, Tensor] = {}
    for path, _ in modules[0].named_buffers():
        owner, _, name = path.rpartition(".")
        stacked[path] = torch.stack([m.get_buffer(path) for m in modules])
        for module, view in zip(modules, stacked[path].unbind(), strict=True):
            setattr(module.get_submodule(owner), name, view)
    return stacked


@contextmanager
def preserving_rows(tensors: Iterable[Tensor] | Mapping[str, Tensor], first: int) -> Generator[None]:
    """Restore the slices from ``first`` on at the end of a block.

    These slices belong to layers that no batch has reached yet.
    """
    values = list(tensors.values()) if isinstance(tensors, Mapping) else list(tensors)
    kept = [t[first:].clone() for t in values]
    try:
        yield
    finally:
        for tensor, rows in zip(values, kept, strict=True):
            tensor[first:] = rows
