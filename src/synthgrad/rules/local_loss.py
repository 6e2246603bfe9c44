"""Local loss: a small classifier at every cut, and nothing learned from above."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..core import Credit, Info, Rule, Site
from ..core.given import check_factory
from .context_input import IGNORED, index_error
from .heads import Head, HeadFactory, linear_head
from .input_gradient import traced_gradient
from .targets import Loss, check_loss, check_num_outputs, check_target, losses_of, mean_of_tokens
from .token_head import TokenHead

__all__ = ["LocalLoss"]


class LocalLoss(Rule):
    """Credit ``δ̂ = ∂ℓ/∂h`` of the loss ``ℓ`` of an auxiliary classifier on ``h``.

    Decoupled greedy learning (Belilovsky, Eickenberg, Oyallon 2019; Nøkland and Eidnes 2019). The module
    below and the classifier descend the same loss; no message from above is used, so none need be sent.
    ``ℓ`` is cross entropy, and the context is the labels: class indices ``(B,)``, or a distribution over classes
    ``(B, classes)``. With ``head=heads.token_head()`` there is a target for each token of a message ``(B, T, D)``, and
    the loss of an example is the mean over its tokens. For several labels at once, regression and the like give the
    ``loss`` of the criterion; the context is then its target. Works under ``torch.compile(fullgraph=True)``.

    Args:
        classes: number of classes; with ``loss``, of the head's outputs.
        head: factory of the classifier; `heads.linear_head` where it is None.
        loss: ``loss(outputs, target)``, of the head's outputs ``(B, classes)`` and the context, which may be
            any tensor of ``B`` rows: the loss of each example, ``(B,)``, or a scalar, which is taken as its mean over
            the batch. ``F.mse_loss``, say. None for cross entropy.
        ignore_index: class index that means no label: loss and credit of such an example are zero. A token without a
            label counts for nothing in the loss; its credit is what the losses of other tokens owe to it through the
            head's blocks, so zero where the head is linear.

    Raises:
        ConfigError: if the number of classes is out of range, or the loss cannot be one.
    """

    listens = False

    def __init__(
        self,
        classes: int,
        head: HeadFactory | None = None,
        *,
        loss: Loss | None = None,
        ignore_index: int = IGNORED,
    ) -> None:
        super().__init__()
        check_loss(loss)
        check_factory("head", head, "head=synthgrad.rules.heads.linear_head()")
        check_num_outputs(classes, loss)
        self.classes = classes
        self.loss = loss
        self.ignore_index = ignore_index
        self._factory = head or linear_head()
        self._has_looked = False  # at the values of a target
        self.head: Head

    def extra_repr(self) -> str:
        return f"{self.classes} {'classes' if self.loss is None else 'outputs'}"

    def build(self, site: Site) -> None:
        self.head = self._factory(site, self.classes)
        self.mean_of_tokens = isinstance(self.head, Head) and self.head.per_token
        self.needs_network = isinstance(self.head, TokenHead) and self.head.reads_network

    def check(self, h: Tensor, info: Info) -> None:
        head = self.head
        if isinstance(head, Head):  # another module takes what it takes
            head.check(h, self.name)
        check_target(
            *(info.context, self.classes, h, self.name, self.loss),
            wait=not self._has_looked,
            per_token=self.mean_of_tokens,
        )
        if not self._has_looked and not torch.compiler.is_compiling():
            self._has_looked = True

    def losses(self, outputs: Tensor, c: Tensor) -> Tensor:
        """Return the loss of each example, ``(B,)``, of the head's outputs and the context."""
        return losses_of(outputs, c, self.name, self.loss, self.ignore_index)

    def _losses_at(self, h: Tensor, c: Tensor, *, learns: bool = True) -> Tensor:
        """Return the loss of each example, ``(B,)``, of a message; scores of tokens are never there as a whole."""
        head = self.head
        if not isinstance(head, TokenHead) or self.loss is not None or c.is_floating_point():
            return self.losses(head(h), c)
        try:
            losses = head.losses(h, c, self.ignore_index, learns=learns)
        except (IndexError, RuntimeError) as error:
            if "out of bounds" not in str(error):
                raise
            raise index_error(c, self.classes, self.name, self.ignore_index) from None
        return mean_of_tokens(losses, c, self.ignore_index)

    def credit(self, h: Tensor, info: Info) -> Credit:
        c = info.context
        assert c is not None
        size = max(h.shape[0], 1)
        if torch.compiler.is_compiling():
            with torch.enable_grad():
                delta, values = traced_gradient(self.head, lambda outputs: self.losses(outputs, c), h)
                return Credit(delta.detach(), loss=values.sum() / size)
        with torch.enable_grad():
            leaf = h.detach().requires_grad_()
            # A view, no leaf: hooks on the head (a counter of operations has some) refuse leaves under `grad`.
            total = self._losses_at(leaf.view_as(leaf), c).sum()
        parameters = [p for p in self.parameters() if p.requires_grad]
        # One backward pass for the credit and for the classifier; the engine's own then costs nothing.
        delta, *grads = torch.autograd.grad(total, [leaf, *parameters])
        with torch.enable_grad():
            loss = _Known.apply(total.detach() / size, size, tuple(grads), *parameters)
        return Credit(delta, loss=loss)

    def local_gradient(self, h: Tensor, info: Info) -> Tensor:
        """Return the gradient of the loss at ``h``, ``(B, ...)``, per-example units; the classifier learns nothing."""
        c = info.context
        assert c is not None
        with torch.enable_grad():
            leaf = h.detach().requires_grad_()
            total = self._losses_at(leaf.view_as(leaf), c, learns=False).sum()
        (delta,) = torch.autograd.grad(total, [leaf])
        return delta


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
