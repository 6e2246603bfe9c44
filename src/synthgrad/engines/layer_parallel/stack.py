"""Runs modules of equal shape as one module with one more dimension, by ``torch.vmap``."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from ...core import ConfigError
from .storage import GradientTable, stack_buffers, stack_parameters

__all__ = ["Stack", "is_vmap_error"]

PerModuleFunction = Callable[..., Tensor | tuple[Tensor, ...]]


def _run(module: nn.Module, h: Tensor) -> Tensor:
    return module(h)


class Stack:
    """``n`` modules that are alike, and whose parameters and buffers are views of batched ones.

    Args:
        modules: the modules, see `comparison.check_alike`; the first serves as the pattern of all.
        learned: the ``id`` of every parameter that learns; None for all that are not frozen.
        name: the name of the modules, for errors.
        put_back: whether the engine restores buffers while no batch has reached the modules; then the buffers
            must stay the same tensors.

    Attributes:
        size: ``n``.
        leaves: the learned parameters, batched, as leaves of autograd: ``(n, ...)``; with one module only,
            its own parameters.
        grads: where their gradients are stored, with the same shapes.
        buffers: the batched buffers, ``(n, ...)``.
    """

    def __init__(
        self,
        modules: Sequence[nn.Module],
        learned: Collection[int] | None = None,
        name: str = "?",
        *,
        put_back: bool = False,
    ) -> None:
        self.size = len(modules)
        self._pattern = modules[0]
        self._name = name
        self._parameters: dict[str, Tensor] = {}
        self._rows: list[
            tuple[list[Tensor], Tensor]
        ] = []  # the parameters of the modules, and their batched gradients
        self.leaves: list[Tensor] = []
        self.grads: list[Tensor] = []
        for path, p in modules[0].named_parameters():
            own: list[Tensor] = [m.get_parameter(path) for m in modules]
            stacked = stack_parameters(own)
            learns = p.requires_grad and (learned is None or id(p) in learned)
            self._parameters[f"pattern.{path}"] = stacked.requires_grad_(learns)
            if learns:
                grads = torch.zeros_like(stacked, requires_grad=False)
                self._rows.append((own, grads))
                self.leaves.append(stacked if self.size > 1 else p)
                self.grads.append(grads if self.size > 1 else grads[0])
        convolutions = nn.Conv1d | nn.Conv2d | nn.Conv3d
        on_cpu = any(p.is_cpu for p in self._parameters.values())
        self._convolves = on_cpu and any(isinstance(m, convolutions) for m in modules[0].modules())
        self._buffers = {f"pattern.{path}": b for path, b in stack_buffers(modules).items()}
        self.buffers = list(self._buffers.values())
        self._calls: dict[PerModuleFunction, _PatternCall] = {}
        self._alone = (
            _PatternCall(self._pattern, _run, name) if put_back and self.size == 1 else self._pattern
        )

    def register(self, gradients: GradientTable, since: Sequence[int]) -> None:
        """Register where gradients will be written, and from which step on for each of the modules."""
        for parameters, grads in self._rows:
            gradients.register(parameters, grads, since)

    def keep(self, grads: Sequence[Tensor]) -> None:
        """Store the gradients of `leaves`."""
        for kept, grad in zip(self.grads, grads, strict=True):
            kept.copy_(grad)

    def __call__(self, h: Tensor) -> Tensor:
        """Run every module on its slice of ``h``, ``(n, B, ...)``; return ``(n, B, ...)``."""
        if self.size == 1:
            return self._alone(h[0]).unsqueeze(0)
        return self.map(_run, h)

    def map(self, ask: PerModuleFunction, *slices: Tensor | None) -> Any:
        """Call ``ask(module, *own)`` for every module with its slices; return the results, ``(n, ...)``.

        Args:
            ask: a function of tensors, pure except for the module's buffers.
            slices: tensors ``(n, ...)``; None stays None for all modules.

        Raises:
            ConfigError: if PyTorch cannot batch the call.
        """
        if self.size == 1:
            found = ask(self._pattern, *(None if s is None else s[0] for s in slices))
            return found.unsqueeze(0) if isinstance(found, Tensor) else tuple(t.unsqueeze(0) for t in found)
        if self._convolves and torch.is_autocast_enabled("cpu"):
            raise ConfigError(
                f"{self._name}: autocast has no effect on convolutions on a CPU that run as one batch; leave it out, or "
                "use InProcess"
            )
        asked = self._calls.get(ask)
        if asked is None:
            asked = self._calls[ask] = _PatternCall(self._pattern, ask, self._name)

        def one(parameters: dict[str, Tensor], buffers: dict[str, Tensor], *own: Tensor | None) -> Any:
            return functional_call(asked, (parameters, buffers), own)

        dims = (0, 0, *(None if s is None else 0 for s in slices))
        batched = torch.vmap(one, in_dims=dims, randomness="different")
        try:
            # Only the plain implementation of attention can be batched by vmap.
            with sdpa_kernel(SDPBackend.MATH):
                return batched(self._parameters, self._buffers, *slices)
        except RuntimeError as error:
            if not is_vmap_error(error):
                raise
            raise ConfigError(
                f"{self._name} cannot run as one batch: {str(error).splitlines()[0]}; change them, or use InProcess"
            ) from error


def is_vmap_error(error: RuntimeError) -> bool:
    """Return whether an error says that PyTorch cannot run something for many modules at once."""
    return any(word in str(error) for word in ("vmap", "functorch", "Batching rule"))


class _PatternCall(nn.Module):
    """A call of the pattern module whose tensors `functional_call` replaces by those of one slice."""

    def __init__(self, pattern: nn.Module, ask: PerModuleFunction, name: str) -> None:
        super().__init__()
        self.pattern = pattern
        self.ask = ask
        self._name = name
        self._looked = False

    def forward(self, *own: Tensor | None) -> Any:
        if self._looked:
            return self.ask(self.pattern, *own)
        before = dict(self.pattern.named_buffers())
        found = self.ask(self.pattern, *own)
        _check_buffers_in_place(self.pattern, before, self._name)
        self._looked = True
        return found


def _check_buffers_in_place(module: nn.Module, before: Mapping[str, Tensor], name: str) -> None:
    """Refuse a module that has replaced a buffer by a new tensor: the batched buffer would not see it.

    Raises:
        ConfigError: naming the buffer.
    """
    for path, buffer in module.named_buffers():
        if before.get(path) is not buffer:
            raise ConfigError(
                f"{name}: buffer '{path}' was given a new tensor, and the buffers of all layers are one; change it in "
                "place (self.buffer.copy_(...), .add_(...)), or use InProcess"
            )
