"""Head gradient: the gradient of a local loss, mapped to the messages by least squares."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..core import ConfigError, Credit, Info, Message, Site
from ..core.given import check_whole
from .buffers import Counting, WideBuffers
from .context_input import IGNORED
from .heads import HeadFactory
from .local_loss import LocalLoss
from .ridge import RunningRidge
from .targets import Loss

__all__ = ["HeadGradient"]


class HeadGradient(Counting, WideBuffers, LocalLoss):
    """Credit ``δ̂ = A a(h)``, where ``a(h)`` is the gradient at ``h`` of the loss of a classifier on ``h``.

    The classifier, a token head for language models, knows the label and the vocabulary, so that ``M(h, c)`` need have
    no table of ``V`` rows; what it lacks is what lies between it and the output, and that is what the matrix ``A`` learns
    from the messages. It acts on the features at every place of ``h`` (token, pixel), and is the same at all. The
    classifier learns from its own loss, as in `LocalLoss`. A rule of this project's own, unproven.

    ``A`` is not descended to, which ran away in trials, but solved for, every ``every`` messages: ridge regression of
    ``δ − a`` on ``a``, drawn towards ``A = 1``, which is the local loss. The first credits are exactly those. The pull
    does not fade: without it ``A`` keeps the directions in which ``a`` says something of ``δ`` and drops the others, and in
    a trial the module below learned the less the better the fit was, behind a head with a block. Sums over messages are
    weighted by ``memory`` to the power of their age; a message that comes late is compared with the ``a`` that the
    classifier makes of its ``h`` by then. Messages that are not finite are left out. In a network that moves as a whole,
    what has been solved for is outdated by a few messages; so the credit of an example is kept on a leash: its norm is no
    more than ``leash`` times the root mean square norm of an example's message. Stages and the layer-parallel engine
    refuse this rule.

    With ``activations=True`` it is ``δ̂ = A a(h) + B h + b``, drawn towards ``B = 0``, ``b = 0`` too. What depends on
    ``h`` alone is a running mean of gradients, which a network follows as a whole while the mean is still that of where
    it was: in a trial with a small GPT it learned no more than how frequent characters are, though the cosine between
    credit and message was high. It is not the default for that reason.

    A place that no label depends on, at which ``a`` is exactly zero, has no credit and teaches nothing. So have examples
    without any label, and, of a causal head, the positions after the last label; a position without a label of its own
    has the credit by the formula if the head lets a later label depend on it.

    Matrices and sums are buffers of about ``3 D²`` numbers (``8 D²`` with activations), at least in float32: there is
    nothing for an optimizer but the classifier, and processes that train on different batches do not share what they
    learn.

    Args:
        classes: as in `LocalLoss`, and so are the next three.
        head: factory of the classifier.
        loss: of the head's outputs and the context.
        ignore_index: class index that means no label.
        activations: let the credit depend on ``h`` itself.
        every: messages between two solutions; the first comes after so many.
        memory: weight of the past from one message to the next, from 0 up to, not including, 1.
        ridge: pull towards the local loss, above 0; with 1 the credit goes half the way from there to the regression.
        leash: longest credit of an example, in units of the usual message; ``math.inf`` for none.

    Raises:
        ConfigError: if an argument is out of its range, or in a graph of the whole network.

    >>> import synthgrad as sg
    >>> sg.rules.HeadGradient(50_000, sg.rules.heads.token_head(blocks=1))
    HeadGradient(50000 classes, every=10, memory=0.95)
    """

    listens = True
    learns_at_once = True

    def __init__(
        self,
        classes: int,
        head: HeadFactory | None = None,
        *,
        loss: Loss | None = None,
        ignore_index: int = IGNORED,
        activations: bool = False,
        every: int = 10,
        memory: float = 0.95,
        ridge: float = 1.0,
        leash: float = 3.0,
    ) -> None:
        super().__init__(classes, head, loss=loss, ignore_index=ignore_index)
        check_whole("every", every, 1, "number of messages")
        if not 0 <= memory < 1:
            raise ConfigError(f"memory={memory!r}: expected a number from 0 up to, not including, 1")
        if not math.isfinite(ridge) or ridge <= 0:
            raise ConfigError(f"ridge={ridge!r}: expected a finite number above 0, such as 1.0")
        if not leash > 0:
            raise ConfigError(f"leash={leash!r}: expected a number above 0, or math.inf for no leash")
        self.activations = activations
        self.every = every
        self.memory = memory
        self.ridge = ridge
        self.leash = leash
        self._features_at = 1
        self.map: RunningRidge
        self.size: Tensor

    def extra_repr(self) -> str:
        activations = ", with activations" if self.activations else ""
        return f"{super().extra_repr()}, every={self.every}, memory={self.memory:g}{activations}"

    def build(self, site: Site) -> None:
        super().build(site)
        self._features_at = site.features_at
        features = site.shape[site.features_at]
        blocks = (features, features, 1) if self.activations else (features,)
        self.map = RunningRidge(blocks, features, memory=self.memory, ridge=self.ridge)
        self._register_counter("messages")
        # The weighted sum of ‖δ‖² over examples, and their weighted number.
        self.register_buffer("size", torch.zeros(2))

    def check(self, h: Tensor, info: Info) -> None:
        if torch.compiler.is_compiling():
            raise ConfigError(
                f"interface '{self.name}': HeadGradient solves in some steps and in others not, which a graph of the whole "
                "network cannot; compile the network's modules (net.model[0].compile()), or leave out fullgraph=True"
            )
        super().check(h, info)

    @property
    def matrices(self) -> tuple[Tensor, Tensor, Tensor]:
        """``A``, ``B``, ``(D, D)``, and ``b``, ``(D,)``, as they act on columns; the last two are zero without activations."""
        weight = self.map.weight
        size = weight.shape[1]
        a = torch.eye(size).to(weight) + weight[:size].t()
        if not self.activations:
            return a, torch.zeros_like(a), torch.zeros_like(a[0])
        return a, weight[size:-1].t(), weight[-1]

    def credit(self, h: Tensor, info: Info) -> Credit:
        made = super().credit(h, info)
        local = made.delta
        assert local is not None
        delta = local if self._counted() < self.every else self._mapped(h, local)
        return Credit(delta, loss=made.loss, pending=(local,))

    @torch.no_grad()
    def observe(self, h: Tensor, info: Info, message: Message, pending: tuple[Tensor, ...] = ()) -> None:
        local = pending[0] if pending else self.local_gradient(h, info)
        self._learn(h, local, message.gradient)

    def observe_grad(
        self, h: Tensor, info: Info, message: Message, pending: tuple[Tensor, ...]
    ) -> tuple[Tensor | None, ...]:
        self.observe(h, info, message, pending)
        return (None,) * len(pending)

    @torch.no_grad()
    def _mapped(self, h: Tensor, local: Tensor) -> Tensor:
        """Return the credit, the shape and dtype of ``h``."""
        a = self._rows(local)
        moved = a + self.map(self._inputs(a, h)).masked_fill_((a == 0).all(1, keepdim=True), 0.0)
        delta = moved.view(h.movedim(self._features_at, -1).shape).movedim(-1, self._features_at)
        norms = torch.linalg.vector_norm(delta.flatten(1), dim=1)  # (B,)
        total, count = self.size.unbind()
        longest = self.leash * (total / count).sqrt()  # not a number until there has been a message
        within = torch.where(norms > longest, longest / norms, torch.ones_like(norms))
        rows = (-1, *[1] * (h.ndim - 1))
        # What overflows falls back to the local loss, whose own numbers the guard looks at.
        return torch.where(norms.isfinite().view(rows), delta * within.view(rows), local).to(h.dtype)

    @torch.no_grad()
    def _learn(self, h: Tensor, local: Tensor, gradient: Tensor) -> None:
        """Take a message into the sums, and solve, if it is time."""
        a, d = self._rows(local), self._rows(gradient)
        matters = ~(a == 0).all(1, keepdim=True)  # (N, 1)
        square = (d.square() * matters).sum()
        count = matters.view(len(h), -1).any(1).sum()
        size = self.size * self.memory + torch.stack([square, count.to(square.dtype)])
        added = self.map.add(self._inputs(a, h), d - a, matters, size.isfinite().all())
        self.size.copy_(torch.where(added, size, self.size))
        if self._tick() % self.every == 0:
            self.map.solve()

    def _inputs(self, a: Tensor, h: Tensor) -> tuple[Tensor, ...]:
        """Return the blocks of inputs of the regression, ``(N, n)`` each."""
        return (a, self._rows(h), torch.ones_like(a[:, :1])) if self.activations else (a,)

    def _rows(self, v: Tensor) -> Tensor:
        """Return a message as rows of features, ``(N, D)``, in the dtype of the sums."""
        return v.movedim(self._features_at, -1).flatten(0, -2).to(self.map.weight.dtype)
