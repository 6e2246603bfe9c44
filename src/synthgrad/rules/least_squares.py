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
    """Credit ``δ̂ = [h, 1] W_c``, with a matrix for each class ``c`` of the context; ``h`` of any shape, flat, or by place.

    When the messages ``δ`` of a batch come, every ``W_c`` makes the smallest change that takes away a share
    ``rate`` of the error on the examples of its class, up to a damping (the affine projection algorithm, Ozeki and
    Umeda 1984; a block of Kaczmarz's method): ``W_c ← W_c + rate · Xᵀ (X Xᵀ + damping · p · I)⁻¹ (δ − X W_c)``,
    ``X`` the rows ``[h, 1]`` and ``p`` their mean square norm. It takes a ``B × B`` solution in place of an
    optimizer's step, and follows a network that moves within a few batches, where the ``M`` of DNI §2 lags behind;
    what it can say is linear. The first synthetic gradients are exactly zero.

    A row is a whole example, and the matrices are ``H + 1`` by ``H`` for messages of ``H`` numbers. With ``per_token`` it
    is the features of one place: a token of ``(B, T, D)`` with ``D + 1`` by ``D``, or a pixel; the class is then that of
    the place, ``(B, T)``, and the solution no larger than ``D + 1``. The matrices are buffers: there is nothing for an optimizer, and processes that train on
    different batches do not share what they learn.

    Args:
        context: number of classes of the context; None for one matrix, which is also the choice for a large vocabulary.
        per_token: take every place of a message by itself, with the same matrices.
        rate: share of a batch's error that is taken away, above 0 up to 1.
        damping: against noise, relative to the mean square norm of a row; above 0.
        ignore_index: class index that means no label: such an example, or place, has no credit and teaches nothing.
            Without a context nothing is known of labels.

    Raises:
        ConfigError: if an argument is out of its range.
    """

    def __init__(
        self,
        context: int | None = None,
        *,
        per_token: bool = False,
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
        self.per_token = per_token
        self._features_at = 1
        self.rate = rate
        self.damping = damping
        self.ignore_index = ignore_index
        self.weight: Tensor  # (classes, H + 1, H)

    def extra_repr(self) -> str:
        classes = f"{self.width} classes, " if self.width else ""
        per_token = ", per token" if self.per_token else ""
        return f"{classes}rate={self.rate:g}, damping={self.damping:g}{per_token}"

    def build(self, site: Site) -> None:
        if len(site.shape) < 2:
            raise CutError(f"interface '{site.name}': a message of shape {site.shape} has no features")
        self._features_at = site.features_at
        size = site.shape[site.features_at] if self.per_token else math.prod(site.shape[1:])
        zeros = torch.zeros(max(self.width, 1), size + 1, size, device=site.device, dtype=site.dtype)
        self.register_buffer("weight", zeros)

    def check(self, h: Tensor, info: Info) -> None:
        if self.width and torch.compiler.is_compiling():
            raise ConfigError(
                f"interface '{self.name}': least squares with a context ask in every step which classes there are, which "
                "a graph of the whole network cannot; compile the network's modules (net.model[0].compile()), or leave "
                "out fullgraph=True"
            )
        at = self._features_at
        given = h.shape[at] if self.per_token and h.ndim > at else math.prod(h.shape[1:])
        if given != self.weight.shape[2]:
            raise ShapeError(
                f"interface '{self.name}': got a message of shape {tuple(h.shape)}, expected {self.weight.shape[2]} "
                "features as in the example"
            )
        if self.width:
            places = h.movedim(at, -1) if self.per_token else h
            c = check_context(info.context, self.width, places, self.name)
            wanted = tuple(places.shape[:-1]) if self.per_token else (h.shape[0],)
            if c.is_floating_point() or tuple(c.shape) != wanted:
                each = "place" if self.per_token else "example"
                remedy = (
                    ""
                    if self.per_token or c.ndim == 1
                    else "; for one at each place give the rule per_token=True"
                )
                raise ContextError(
                    f"interface '{self.name}': got a context of shape {tuple(c.shape)} and dtype {c.dtype}; least "
                    f"squares want class indices {wanted}, an integer for each {each}{remedy}"
                )

    @torch.no_grad()
    def credit(self, h: Tensor, info: Info) -> Credit:
        flat = self._rows(h).to(self.weight.dtype)
        delta = torch.zeros_like(flat)
        with torch.autocast(h.device.type, enabled=False):
            for rows, weight in self._classes(h, info):
                delta[rows] = torch.addmm(weight[-1], flat[rows], weight[:-1])
        if self.per_token:
            delta = delta.view(h.movedim(self._features_at, -1).shape).movedim(-1, self._features_at)
            return Credit(delta.to(h.dtype))
        return Credit(delta.view(h.shape).to(h.dtype))

    @torch.no_grad()
    def observe(self, h: Tensor, info: Info, message: Message, pending: tuple[Tensor, ...] = ()) -> None:
        # Nothing is solved for in half precision.
        wide = torch.promote_types(self.weight.dtype, torch.float32)
        flat, gradient = (self._rows(v).to(wide) for v in (h, message.gradient))
        with torch.autocast(h.device.type, enabled=False):
            for rows, weight in self._classes(h, info):
                x = F.pad(flat[rows], (0, 1), value=1.0)  # (b, H + 1)
                error = gradient[rows] - x @ weight.to(wide)
                # The same change in two forms: (XᵀX + λ)⁻¹ Xᵀ E = Xᵀ (XXᵀ + λ)⁻¹ E; the smaller system is solved.
                many = self.per_token and len(x) > x.shape[1]
                products = x.t() @ x if many else x @ x.t()
                square = products.diagonal().sum() / len(x) if many else products.diagonal().mean()
                products.diagonal().add_(square * self.damping)
                # Without the check of `solve`, which would wait for the device; numbers that are not finite show in
                # the loss.
                solved, _ = torch.linalg.solve_ex(products, x.t() @ error if many else error)
                weight += self.rate * (solved if many else x.t() @ solved)

    def _rows(self, v: Tensor) -> Tensor:
        """Return a message as rows: of whole examples, ``(B, H)``, or of the features of each place."""
        return v.movedim(self._features_at, -1).flatten(0, -2) if self.per_token else v.flatten(1)

    def _classes(self, h: Tensor, info: Info) -> list[tuple[slice | Tensor, Tensor]]:
        """Return the rows of each class that occurs, and its matrix as a view."""
        c = info.context
        if not self.width or c is None:
            return [(slice(None), self.weight[0])]
        c = c.flatten()
        found: list[int] = c.unique().tolist()
        if len(found) == 1 and 0 <= found[0] < self.width and found[0] != self.ignore_index:
            return [(slice(None), self.weight[found[0]])]
        found = [k for k in found if k != self.ignore_index]
        if found and not 0 <= found[0] <= found[-1] < self.width:
            raise index_error(c, self.width, self.name, self.ignore_index)
        return [(c == k, self.weight[k]) for k in found]
