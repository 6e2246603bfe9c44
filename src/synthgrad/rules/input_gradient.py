"""The gradient of a head's losses at its input, taken inside a forward pass that is compiled as a whole."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn
from torch.func import functional_call, grad_and_value

__all__ = ["traced_gradient"]


def traced_gradient(head: nn.Module, losses: Callable[[Tensor], Tensor], h: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``∂ Σ losses(head(h)) / ∂h``, the shape of ``h``, and the losses, ``(B,)``.

    Both stay attached to the parameters of the head, and its buffers are updated. ``torch.compile(fullgraph=True)``
    traces this form; ``torch.autograd.grad``, which costs less outside of a graph, it refuses to by default.

    Args:
        head: takes ``h``, returns ``(B, outputs)``.
        losses: of the outputs.
        h: ``(B, ...)``; detached here.
    """
    buffers = dict(head.named_buffers())

    def total(leaf: Tensor, inner: dict[str, Tensor]) -> tuple[Tensor, tuple[Tensor, dict[str, Tensor]]]:
        values = losses(functional_call(head, inner, (leaf,)))
        return values.sum(), (values, inner)

    # Buffers that a function changes must be arguments of it.
    copies = {name: b.clone() for name, b in buffers.items()}
    delta, (_, (values, after)) = grad_and_value(total, has_aux=True)(h.detach(), copies)
    for name, b in buffers.items():
        b.copy_(after[name])
    return delta, values
