"""Critic rule: a model of the loss, whose input gradient is the credit (Czarnecki et al. 2017)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from ..core import ConfigError, Credit, CutError, Info, Message, Rule, Site
from ..core.given import check_factory, widths_of
from .context_input import IGNORED, check_context, encode
from .heads import Head, HeadFactory, linear_head
from .input_gradient import traced_gradient
from .targets import Loss, check_loss, check_num_outputs, check_target, losses_of
from .token_head import TokenHead

__all__ = ["Sobolev"]

Critic = Literal["classifier", "value"]
_LAYERS = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d


class Sobolev(Rule):
    """``V(h, c)`` predicts the loss of each example; the credit is ``δ̂ = ∂V/∂h``.

    Trained on gradient and value together (Sobolev training, Czarnecki et al. 2017, *Sobolev Training for
    Neural Networks*): ``mean over examples of ‖∂V/∂h − δ‖² + value_weight · (V − L)²``. The second term
    counts where the message carries the loss values ``L``, which an engine sends if the criterion returns
    the loss of each example.

    Two forms of ``V``: ``"classifier"``, ``V = ℓ(p(h), c)``, the cross entropy of a small classifier ``p``,
    into which the label enters by the loss alone; and ``"value"``, any function of ``h`` and the label. The context
    of a classifier is class indices ``(B,)``, or a distribution ``(B, classes)``; with ``head=heads.token_head()`` the
    same for each token of a message ``(B, T, D)``, and the loss of an example is the mean over its tokens; the scores of
    all tokens are held until the message has been learned from. For several labels at once, regression and the like give
    the ``loss`` of the criterion. Works under ``torch.compile(fullgraph=True)``.

    Args:
        classes: number of classes of the context; None for no context (form ``"value"`` only). With ``loss``, of the
            head's outputs.
        hidden: widths of the hidden layers of ``V``.
        critic: the form of ``V``.
        head: factory of the layers of ``V``, in place of ``hidden``.
        norm: BatchNorm in the hidden layers.
        value_weight: weight of the value's error beside the gradient's.
        loss: in place of the cross entropy ``ℓ`` of a classifier: ``loss(outputs, target)``, of the head's outputs
            ``(B, classes)`` and the context, which may be any tensor of ``B`` rows. It can be differentiated
            twice, and returns the loss of each example, ``(B,)``, or a scalar, which is taken as the loss of each.
        ignore_index: class index that means no label: value and credit of such an example are zero. A token without a
            label counts for nothing in the value; its credit is what other tokens' values owe to it.

    Raises:
        ConfigError: if an argument is out of its range.
    """

    def __init__(
        self,
        classes: int | None,
        hidden: Sequence[int] = (),
        *,
        critic: Critic = "classifier",
        head: HeadFactory | None = None,
        norm: bool = True,
        value_weight: float = 1.0,
        loss: Loss | None = None,
        ignore_index: int = IGNORED,
    ) -> None:
        super().__init__()
        if critic not in ("classifier", "value"):
            raise ConfigError(f"critic={critic!r}: expected 'classifier' or 'value'")
        if classes is None and critic == "classifier":
            raise ConfigError(
                "classes=None: a classifier needs classes; give their number, or critic='value'"
            )
        if loss is not None and critic == "value":
            raise ConfigError(
                "loss= is for critic='classifier'; a critic of the value has no loss of its own"
            )
        check_loss(loss)
        check_factory("head", head, "head=synthgrad.rules.heads.linear_head()")
        hidden = widths_of(hidden)
        if classes is not None:
            check_num_outputs(classes, loss)
        if value_weight < 0:
            raise ConfigError(f"value_weight={value_weight!r}: expected at least 0")
        self.classes = classes or 0
        self.critic: Critic = critic
        self.value_weight = value_weight
        self.loss = loss
        self.ignore_index = ignore_index
        self._has_looked = False  # at the values of a target
        self._factory = head or linear_head(hidden, norm=norm)
        self._given = head is not None
        self._hidden = hidden
        self.head: Head
        self.table: nn.Parameter | None = None

    def extra_repr(self) -> str:
        layers = "hidden " + " × ".join(map(str, self._hidden)) if self._hidden else "linear"
        layers = "layers of a factory" if self._given else layers
        return f"{self.critic}, {layers}" + (f", {self.classes} classes" if self.classes else "")

    def build(self, site: Site) -> None:
        # As a function of value, V has an output for every class and takes that of the label: the label may
        # choose any function of h. Without labels it has one.
        self.head = self._factory(site, max(self.classes, 1))
        self.mean_of_tokens = isinstance(self.head, Head) and self.head.per_token
        if self.mean_of_tokens and self.critic == "value":
            raise CutError(
                f"interface '{site.name}': critic='value' gives an example one value, and its head has scores for each token; "
                "take critic='classifier' for tokens, or another head"
            )
        if isinstance(self.head, TokenHead) and self.head.reads_network:
            raise CutError(
                f"interface '{site.name}': a critic learns its last layer, from zero, and its head uses the network's "
                "unembedding; leave unembedding= out, or take LocalLoss or HeadGradient"
            )
        # The first credits are zero, as those of every M (DNI §2).
        last = [layer for layer in self.head.modules() if isinstance(layer, _LAYERS)][-1]
        for p in last.parameters():
            nn.init.zeros_(p)

    def check(self, h: Tensor, info: Info) -> None:
        if self.critic == "classifier":
            check_target(
                *(info.context, self.classes, h, self.name, self.loss),
                wait=not self._has_looked,
                per_token=self.mean_of_tokens,
            )
            if not self._has_looked and not torch.compiler.is_compiling():
                self._has_looked = True
        elif self.classes:
            check_context(info.context, self.classes, h, self.name, by_place=False)
        head = self.head
        if isinstance(head, Head):  # another module takes what it takes
            head.check(h, self.name)

    def values(self, h: Tensor, info: Info) -> Tensor:
        """Return ``V(h, c)``, ``(B,)``, attached to ``h`` and to the parameters."""
        return self._values(self.head(h), info.context)

    def _values(self, outputs: Tensor, c: Tensor | None) -> Tensor:
        """Return ``V`` of the head's outputs."""
        if not self.classes:
            return outputs.squeeze(1)
        assert c is not None
        if self.critic == "classifier":
            return losses_of(outputs, c, self.name, self.loss, self.ignore_index)
        return (outputs * encode(c, self.classes, outputs, self.name, self.ignore_index)).sum(1)

    def predict(self, h: Tensor, info: Info) -> tuple[Tensor, Tensor]:
        """Return credit and values, both attached to the parameters."""
        if torch.compiler.is_compiling():
            with torch.enable_grad():
                return traced_gradient(self.head, lambda outputs: self._values(outputs, info.context), h)
        with torch.enable_grad():
            leaf = h.detach().requires_grad_()
            # A view, no leaf: hooks on the head (a counter of operations has some) refuse leaves under `grad`.
            values = self.values(leaf.view_as(leaf), info)
            (delta,) = torch.autograd.grad(values.sum(), leaf, create_graph=True)
        return delta, values

    def credit(self, h: Tensor, info: Info) -> Credit:
        delta, values = self.predict(h, info)
        return Credit(delta.detach().to(h.dtype), pending=(delta, values), value=values.detach())

    def observe(self, h: Tensor, info: Info, message: Message, pending: tuple[Tensor, ...] = ()) -> Tensor:
        delta, values = pending or self.predict(h, info)
        error = (delta - message.gradient).square().sum()
        if message.loss is not None:
            error = error + self.value_weight * (values - message.loss).square().sum()
        return error / max(h.shape[0], 1)

    def observe_grad(
        self, h: Tensor, info: Info, message: Message, pending: tuple[Tensor, ...]
    ) -> tuple[Tensor, ...]:
        delta, values = (p.detach() for p in pending)
        scale = 2.0 / max(h.shape[0], 1)
        by_value = torch.zeros_like(values)
        if message.loss is not None:
            by_value = (values - message.loss) * (scale * self.value_weight)
        return (delta - message.gradient) * scale, by_value
