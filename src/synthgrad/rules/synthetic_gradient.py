"""The synthetic gradient: a model predicts the gradient that would come back (DNI §2.1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..core import ConfigError, ContextError, Credit, CutError, Info, Message, Rule, Site
from ..core.given import check_factory, check_whole, widths_of
from .context_input import IGNORED, has_labels
from .models import GradientModel, ModelFactory, class_means, convolutional, dense
from .spatial import kernel_of, num_space_dims

__all__ = ["SyntheticGradient"]


class SyntheticGradient(Rule):
    """Credit ``δ̂ = M(h, c)``; ``M`` learns on ``mean over examples of ‖M(h, c) − δ‖²`` (DNI §2.1, eq. 2).

    The sum runs over the features of an example. The first synthetic gradients are exactly zero.

    By default ``M`` is fully connected on vectors and tokens, ``(B, H)`` and ``(B, T, H)``, and convolutional on
    ``(B, C, L)``, images and volumes, wherever the features of these are.

    A linear ``M`` on vectors and tokens, with a context, keeps a running mean of the messages of each class:
    ``M(h, c) = 3 h Wᵀ / √H + t_c``, `models.class_means`. When the messages of a batch have come, ``t_c`` moves by the mean
    error of its class, and ``W`` learns by gradient from the error that is left. This is our addition: the table of the
    paper's ``M`` is learned by gradient like everything else, and lags behind for hundreds of steps, above all in networks
    without BatchNorm. See *Defaults that learn* in the documentation.

    Args:
        hidden: widths (channels, where ``M`` is convolutional) of the hidden layers of ``M``; ``()`` is linear.
        context: number of classes (features) of the context, which makes it *cDNI*; None for none.
        model: factory of another ``M``, such as ``models.like_layer()``; ``hidden`` is then not given.
        norm: BatchNorm in the hidden layers of ``M``.
        kernel: odd size of the kernels, where ``M`` is convolutional; None for 5, and 3 in volumes.
        maps: take the context as a learned map for each class, for such messages, in place of masks.
        receiver: let ``M`` see the state of the module that it speaks for, ``M(h, s_B, c)``, in engines that
            tell it: those whose modules have states of their own (DNI §2).
        error_to_h: let the error of ``M`` also flow into ``h``. Only in the plain training loop: in an
            unlocked one it would come when the module below has long updated.
        ignore_index: class index that means no label: the context of such an example is zero. Of contexts for each
            place, such as the tokens ``(B, T)`` of ``(B, T, H)``, the context is zero at such places, where a gradient
            still comes from other places; an example without any label has no gradient, and so no credit.
        learned_table: let the optimizer learn what a linear ``M`` adds for each class, as in the paper, in place of means;
            also the form that older snapshots hold.

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
        kernel: int | None = None,
        maps: bool = False,
        receiver: bool = False,
        error_to_h: bool = False,
        ignore_index: int = IGNORED,
        learned_table: bool = False,
    ) -> None:
        super().__init__()
        hidden = widths_of(hidden)
        if context is not None:
            check_whole("context", context, 1, "number of classes")
        kernel_of(kernel, 2)
        check_factory("model", model, "model=synthgrad.rules.models.like_layer()")
        if model is not None and hidden:
            raise ConfigError("hidden and model are both given; let the factory say the hidden layers")
        self.hidden = hidden
        self.width = context or 0
        self.norm = norm
        self.kernel = kernel
        self.maps = maps
        self.receiver = receiver
        self.error_to_h = error_to_h
        self.ignore_index = ignore_index
        self.learned_table = learned_table
        self._factory = model
        self._checked: object = None  # the form of what was found to fit last
        self.model: GradientModel

    def extra_repr(self) -> str:
        if self._factory is not None:
            model = "M of a factory"
        else:
            model = "M with hidden " + " × ".join(map(str, self.hidden)) if self.hidden else "linear M"
        model += f", {self.width} classes" if self.width else ""
        return model + (", sees the receiver" if self.receiver else "")

    def build(self, site: Site) -> None:
        if self.receiver and site.receiver is None:
            raise CutError(
                f"interface '{site.name}': its rule is to see the state of the receiving module (receiver=True), and "
                "none is told there; give that module a state and train it in engines.Clocked, or receiver=False"
            )
        if not self.receiver:
            site = replace(site, receiver=None)
        self.model = self._choose(site)(site, self.width)
        if self.model.receiver != (site.receiver or 0):
            raise CutError(
                f"interface '{site.name}': a {type(self.model).__name__} takes no state of the receiving module; use "
                "models.dense, or receiver=False"
            )
        self.model.ignore_index = self.ignore_index

    def _choose(self, site: Site) -> ModelFactory:
        if self._factory is not None:
            return self._factory
        if len(site.shape) > 1 and num_space_dims(site):
            return convolutional(self.hidden, kernel=self.kernel, norm=self.norm, maps=self.maps)
        if self.width and not self.hidden and not self.learned_table and site.receiver is None:
            return class_means()
        return dense(self.hidden, norm=self.norm)

    def check(self, h: Tensor, info: Info) -> None:
        if torch.compiler.is_compiling():
            return
        c, s = info.context, info.receiver if self.receiver else None
        form = (h.shape, None if c is None else (c.shape, c.dtype), None if s is None else s.shape)
        if form != self._checked:
            self.model.check(h, c)
            if self.receiver:
                self._check_receiver(h, s)
            # Whether one example will do depends on the mode as well (BatchNorm), so it is asked again.
            self._checked = form if h.shape[0] > 1 else None

    def _check_receiver(self, h: Tensor, s: Tensor | None) -> None:
        expected = (h.shape[0], self.model.receiver)
        if s is None or tuple(s.shape) != expected:
            raise ContextError(
                f"interface '{self.name}': its rule sees the state of the receiving module and got "
                f"{'none' if s is None else f'one of shape {tuple(s.shape)}'}, expected {expected} in Info.receiver; use "
                "an engine that tells it, such as engines.Clocked, or receiver=False"
            )

    def predict(self, h: Tensor, info: Info) -> Tensor:
        """Return ``M(h, c)`` or ``M(h, s, c)``, ``(B, ...)`` in the dtype of ``h``, attached to the model's parameters."""
        return self._with_offset(self._learned(h, info), h, info)

    def _learned(self, h: Tensor, info: Info) -> Tensor:
        """Return the part of the prediction that optimizers train, ``(B, ...)``: all of it, unless ``M`` has an offset."""
        receiver = info.receiver if self.receiver else None
        return self._known(self.model.learned(h, info.context if self.width else None, receiver), h, info)

    def _with_offset(self, learned: Tensor, h: Tensor, info: Info) -> Tensor:
        """Return the prediction, ``(B, ...)``, as the offset is now."""
        offset = self.model.offset(h, info.context) if self.width else None
        return learned if offset is None else learned + self._known(offset, h, info)

    def _known(self, made: Tensor, h: Tensor, info: Info) -> Tensor:
        """Return a part of the prediction in the dtype of ``h``, with zeros for examples without any label."""
        labelled = (
            has_labels(info.context, self.ignore_index) if self.width and info.context is not None else None
        )
        if labelled is not None:
            made = made * labelled.view(-1, *[1] * (h.ndim - 1)).to(made.dtype)
        return made.to(h.dtype)

    def credit(self, h: Tensor, info: Info) -> Credit:
        learned = self._learned(h if self.error_to_h else h.detach(), info)
        # Only the learned part is left pending: the offset may have moved when the message comes.
        return Credit(self._with_offset(learned.detach(), h, info), pending=(learned,))

    def observe(self, h: Tensor, info: Info, message: Message, pending: tuple[Tensor, ...] = ()) -> Tensor:
        learned = pending[0] if pending else self._learned(h.detach(), info)
        if self.model.has_offset:
            # Attached by a difference of zero, so that the figures are those of `observe_grad`.
            error = self._error(learned.detach(), h, info, message) + (learned - learned.detach())
        else:
            error = learned - message.gradient
        return error.square().sum() / max(h.shape[0], 1)

    def observe_grad(
        self, h: Tensor, info: Info, message: Message, pending: tuple[Tensor, ...]
    ) -> tuple[Tensor, ...]:
        # d/dδ̂ of mean ‖δ̂ − δ‖², written out: saves the forward of the loss, and needs no graph.
        error = self._error(pending[0].detach(), h, info, message)
        return (error.mul_(2.0 / max(h.shape[0], 1)),)

    def _error(self, learned: Tensor, h: Tensor, info: Info, message: Message) -> Tensor:
        """Return ``M(h, c) − δ``, detached, when the offset has learned from it."""
        error = self._with_offset(learned, h, info) - message.gradient
        return self.model.correct(error, info.context) if self.model.has_offset else error
