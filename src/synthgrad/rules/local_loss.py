"""Local loss: a small classifier at every cut, and nothing learned from above."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..core import ConfigError, ContextError, Credit, Info, Rule, Site
from .context_input import index_error
from .heads import Head, HeadFactory, linear_head

__all__ = ["LocalLoss"]


class LocalLoss(Rule):
    """Credit ``δ̂ = ∂ℓ/∂h`` of the loss ``ℓ`` of an auxiliary classifier on ``h``.

    Decoupled greedy learning (Belilovsky, Eickenberg, Oyallon 2019; Nøkland and Eidnes 2019). The module
    below and the classifier descend the same loss; no message from above is used, so none need be sent.
    The context is the labels: class indices ``(B,)``, or a distribution over classes ``(B, classes)``.

    Args:
        classes: number of classes.
        head: factory of the classifier; `heads.linear_head` where it is None.

    Raises:
        ConfigError: if the number of classes is out of range.
    """

    listens = False

    def __init__(self, classes: int, head: HeadFactory | None = None) -> None:
        super().__init__()
        if isinstance(classes, bool) or classes < 2:
            raise ConfigError(f"classes={classes!r}: expected the number of classes, at least 2")
        self.classes = classes
        self._factory = head or linear_head()
        self.head: Head

    def extra_repr(self) -> str:
        return f"{self.classes} classes"

    def build(self, site: Site) -> None:
        self.head = self._factory(site, self.classes)

    def check(self, h: Tensor, info: Info) -> None:
        check_labels(info.context, self.classes, h, self.name)

    def credit(self, h: Tensor, info: Info) -> Credit:
        assert info.context is not None
        with torch.enable_grad():
            leaf = h.detach().requires_grad_()
            # A view, no leaf: hooks on the head (a counter of operations has some) refuse leaves under `grad`.
            scores = self.head(leaf.view_as(leaf))
            total = cross_entropies(scores, info.context, self.classes, self.name).sum()
        parameters = [p for p in self.head.parameters() if p.requires_grad]
        # One backward pass for the credit and for the classifier; the engine's own then costs nothing.
        delta, *grads = torch.autograd.grad(total, [leaf, *parameters])
        size = max(h.shape[0], 1)
        with torch.enable_grad():
            loss = _Known.apply(total.detach() / size, size, tuple(grads), *parameters)
        return Credit(delta, loss=loss)


class _Known(torch.autograd.Function):
    """A scalar whose gradients with respect to some parameters are known already."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, size: int, grads: tuple[Tensor, ...], *parameters: Tensor) -> Tensor:
        ctx.size = size
        ctx.save_for_backward(*grads)
        return value.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return (None, None, None, *(g * (grad / ctx.size) for g in ctx.saved_tensors))


def check_labels(c: Tensor | None, classes: int, h: Tensor, name: str) -> None:
    """Raise `ContextError` unless the context is ``(B,)`` integers or ``(B, classes)`` floats."""
    if c is None:
        raise ContextError(
            f"interface '{name}': its rule needs labels as context and got none; call net(x, context=y), "
            "or run the network inside `with synthgrad.context(y):`"
        )
    expected = (h.shape[0], classes) if c.is_floating_point() else (h.shape[0],)
    if tuple(c.shape) != expected:
        raise ContextError(
            f"interface '{name}': got labels of shape {tuple(c.shape)} and dtype {c.dtype} for a message of "
            f"shape {tuple(h.shape)}, expected class indices ({h.shape[0]},) or a distribution "
            f"({h.shape[0]}, {classes})"
        )


def cross_entropies(scores: Tensor, c: Tensor, classes: int, name: str) -> Tensor:
    """Return the cross entropy of each example, ``(B,)``.

    Raises:
        ContextError: if a class index is out of range.
    """
    target = c.to(scores.dtype) if c.is_floating_point() else c.long()
    try:
        return F.cross_entropy(scores, target, reduction="none")
    except (IndexError, RuntimeError) as error:
        if c.is_floating_point() or "out of bounds" not in str(error):
            raise
        raise index_error(c, classes, name) from None
