"""Synthetic gradients by least squares: a linear ``M`` that is solved for, a batch at a time, not descended to."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from ..core import ConfigError, ContextError, Credit, CutError, Info, Message, Rule, ShapeError, Site
from ..core.given import check_whole
from .context_input import IGNORED, check_context, index_error

__all__ = ["LeastSquaresGradient"]


class LeastSquaresGradient(Rule):
    """Credit ``δ̂ = [h, 1] W_c``, with a matrix for each class ``c`` of the context; ``h`` of any shape, flat.

    When the messages ``δ`` of a batch come, every ``W_c`` makes the smallest change that takes away a share
    ``rate`` of the error on the examples of its class, up to a damping (the affine projection algorithm, Ozeki and
    Umeda 1984; a block of Kaczmarz's method): ``W_c ← W_c + rate · Xᵀ (X Xᵀ + damping · p · I)⁻¹ (δ − X W_c)``,
    ``X`` the rows ``[h, 1]`` and ``p`` their mean square norm. It takes a ``B × B`` solution in place of an
    optimizer's step, and follows a network that moves within a few batches, where the ``M`` of DNI §2 lags behind;
    what it can say is linear. The first synthetic gradients are exactly zero.

    The matrices, ``H + 1`` by ``H`` for messages of ``H`` features, are buffers: there is nothing for an optimizer,
    and processes that train on different batches do not share what they learn.

    Args:
        context: number of classes of the context; None for one matrix.
        rate: share of a batch's error that is taken away, above 0 up to 1.
        damping: against noise, relative to the mean square norm of a row; above 0.
        ignore_index: class index that means no label: such an example has no credit and teaches nothing.

    Raises:
        ConfigError: if an argument is out of its range.
    """

    def __init__(
        self,
        context: int | None = None,
        *,
        rate: float = 0.7,
        damping: float = 0.01,
        ignore_index: int = IGNORED,
    ) -> None:
        super().__init__()
        if context is not None:
            check_whole("context", context, 1, "number of classes")
        if not 0 < rate <= 1:
            raise ConfigError(f"rate={rate!r}: expected a number above 0 up to 1")
        if not math.isfinite(damping) or damping <= 0:
            raise ConfigError(f"damping={damping!r}: expected a finite number above 0, such as 0.01")
        self.width = context or 0
        self.rate = rate
        self.damping = damping
        self.ignore_index = ignore_index
        self.weight: Tensor  # (classes, H + 1, H)

    def extra_repr(self) -> str:
        classes = f"{self.width} classes, " if self.width else ""
        return f"{classes}rate={self.rate:g}, damping={self.damping:g}"

    def build(self, site: Site) -> None:
        if len(site.shape) < 2:
            raise CutError(f"interface '{site.name}': a message of shape {site.shape} has no features")
        size = math.prod(site.shape[1:])
        zeros = torch.zeros(max(self.width, 1), size + 1, size, device=site.device, dtype=site.dtype)
        self.register_buffer("weight", zeros)

    def check(self, h: Tensor, info: Info) -> None:
        if self.width and torch.compiler.is_compiling():
            raise ConfigError(
                f"interface '{self.name}': least squares with a context ask in every step which classes there are, which "
                "a graph of the whole network cannot; compile the network's modules (net.model[0].compile()), or leave "
                "out fullgraph=True"
            )
        if math.prod(h.shape[1:]) != self.weight.shape[2]:
            raise ShapeError(
                f"interface '{self.name}': got a message of shape {tuple(h.shape)}, expected {self.weight.shape[2]} "
                "features as in the example"
            )
        if self.width:
            c = check_context(info.context, self.width, h, self.name)
            if c.is_floating_point() or c.ndim != 1:
                raise ContextError(
                    f"interface '{self.name}': got a context of shape {tuple(c.shape)} and dtype {c.dtype}; least "
                    f"squares want class indices ({h.shape[0]},), an integer for each example"
                )

    @torch.no_grad()
    def credit(self, h: Tensor, info: Info) -> Credit:
        flat = h.flatten(1).to(self.weight.dtype)
        delta = torch.zeros_like(flat)
        with torch.autocast(h.device.type, enabled=False):
            for rows, weight in self._classes(h, info):
                delta[rows] = torch.addmm(weight[-1], flat[rows], weight[:-1])
        return Credit(delta.view(h.shape).to(h.dtype))

    @torch.no_grad()
    def observe(self, h: Tensor, info: Info, message: Message, pending: tuple[Tensor, ...] = ()) -> None:
        # Nothing is solved for in half precision.
        wide = torch.promote_types(self.weight.dtype, torch.float32)
        flat, gradient = (v.flatten(1).to(wide) for v in (h, message.gradient))
        with torch.autocast(h.device.type, enabled=False):
            for rows, weight in self._classes(h, info):
                x = F.pad(flat[rows], (0, 1), value=1.0)  # (b, H + 1)
                error = gradient[rows] - x @ weight.to(wide)
                products = x @ x.t()  # (b, b)
                products.diagonal().add_(products.diagonal().mean() * self.damping)
                # Without the check of `solve`, which would wait for the device; numbers that are not finite show in
                # the loss.
                solved, _ = torch.linalg.solve_ex(products, error)
                weight += self.rate * (x.t() @ solved)

    def _classes(self, h: Tensor, info: Info) -> list[tuple[slice | Tensor, Tensor]]:
        """Return the rows of each class that occurs, and its matrix as a view."""
        c = info.context
        if not self.width or c is None:
            return [(slice(None), self.weight[0])]
        found: list[int] = c.unique().tolist()
        if len(found) == 1 and 0 <= found[0] < self.width and found[0] != self.ignore_index:
            return [(slice(None), self.weight[found[0]])]
        found = [k for k in found if k != self.ignore_index]
        if found and not 0 <= found[0] <= found[-1] < self.width:
            raise index_error(c, self.width, self.name, self.ignore_index)
        return [(c == k, self.weight[k]) for k in found]
