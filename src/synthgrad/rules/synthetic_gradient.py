"""The synthetic gradient: a model predicts the gradient that would come back (DNI §2.1)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..core import ConfigError, Credit, Info, Message, Rule, Site
from .models import GradientModel, ModelFactory, convolutional, dense

__all__ = ["SyntheticGradient"]


class SyntheticGradient(Rule):
    """Credit ``δ̂ = M(h, c)``; ``M`` learns on ``mean over examples of ‖M(h, c) − δ‖²`` (DNI §2.1, eq. 2).

    The sum runs over the features of an example. The first synthetic gradients are exactly zero.

    Args:
        hidden: widths (channels, for messages ``(B, C, Y, X)``) of the hidden layers of ``M``;
            ``()`` is linear.
        context: number of classes (features) of the context, which makes it *cDNI*; None for none.
        model: factory of another ``M``, such as ``models.like_layer()``; ``hidden`` is then not given.
        norm: BatchNorm in the hidden layers of ``M``.
        kernel: odd size of the kernels, for messages ``(B, C, Y, X)``.
        maps: take the context as a learned map for each class, for such messages, in place of masks.
        error_to_h: let the error of ``M`` also flow into ``h``. Only in the plain training loop: in an
            unlocked one it would come when the module below has long updated.

    Raises:
        ConfigError: if an argument is out of its range.
    """

    def __init__(
        self,
        hidden: Sequence[int] = (),
        context: int | None = None,
        *,
        model: ModelFactory | None = None,
        norm: bool = True,
        kernel: int = 5,
        maps: bool = False,
        error_to_h: bool = False,
    ) -> None:
        super().__init__()
        if any(isinstance(n, bool) or not isinstance(n, int) or n < 1 for n in hidden):
            raise ConfigError(f"hidden={tuple(hidden)!r}: expected widths of at least 1, or () for linear")
        if context is not None and (isinstance(context, bool) or context < 1):
            raise ConfigError(f"context={context!r}: expected the number of classes, at least 1, or None")
        if isinstance(kernel, bool) or kernel < 1 or kernel % 2 == 0:
            raise ConfigError(f"kernel={kernel!r}: expected an odd number, such as 3 or 5")
        if model is not None and tuple(hidden):
            raise ConfigError("hidden and model are both given; let the factory say the hidden layers")
        self.hidden = tuple(hidden)
        self.width = context or 0
        self.norm = norm
        self.kernel = kernel
        self.maps = maps
        self.error_to_h = error_to_h
        self._factory = model
        self._checked: object = None  # the form of what was found to fit last
        self.model: GradientModel

    def extra_repr(self) -> str:
        if self._factory is not None:
            model = "M of a factory"
        else:
            model = "M with hidden " + " × ".join(map(str, self.hidden)) if self.hidden else "linear M"
        return model + (f", {self.width} classes" if self.width else "")

    def build(self, site: Site) -> None:
        self.model = self._choose(site)(site, self.width)

    def _choose(self, site: Site) -> ModelFactory:
        if self._factory is not None:
            return self._factory
        if len(site.shape) == 4:
            return convolutional(self.hidden, kernel=self.kernel, norm=self.norm, maps=self.maps)
        return dense(self.hidden, norm=self.norm)

    def check(self, h: Tensor, info: Info) -> None:
        if torch.compiler.is_compiling():
            return
        c = info.context
        form = (h.shape, None if c is None else (c.shape, c.dtype))
        if form != self._checked:
            self.model.check(h, c)
            self._checked = form

    def predict(self, h: Tensor, info: Info) -> Tensor:
        """Return ``M(h, c)``, ``(B, ...)`` in the dtype of ``h``, attached to the model's parameters."""
        return self.model(h, info.context if self.width else None).to(h.dtype)

    def credit(self, h: Tensor, info: Info) -> Credit:
        prediction = self.predict(h if self.error_to_h else h.detach(), info)
        return Credit(prediction.detach(), pending=(prediction,))

    def observe(self, h: Tensor, info: Info, message: Message, pending: tuple[Tensor, ...] = ()) -> Tensor:
        prediction = pending[0] if pending else self.predict(h.detach(), info)
        return (prediction - message.gradient).square().sum() / max(h.shape[0], 1)

    def observe_grad(
        self, h: Tensor, info: Info, message: Message, pending: tuple[Tensor, ...]
    ) -> tuple[Tensor, ...]:
        # d/dδ̂ of mean ‖δ̂ − δ‖², written out: saves the forward of the loss, and needs no graph.
        return ((pending[0].detach() - message.gradient).mul_(2.0 / max(h.shape[0], 1)),)
