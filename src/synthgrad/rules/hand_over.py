"""Hand-over from backpropagation to any rule: warm-up, freeze, and the true gradient where the rule is bad."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from ..core import ConfigError, Credit, Info, Message, Rule, quality
from ..core.given import check_whole
from .buffers import Counting
from .wrapper import Wrapper

__all__ = ["HandOver"]


class HandOver(Counting, Wrapper):
    """Wraps a rule: the module below learns from the true gradient while the rule is not to be trusted.

    While it waits, the rule inside learns beside it, and its credit is used for nothing. Works in engines
    that have the true gradient, or can wait for it: the plain training loop and the in-process engine. It cannot
    be part of a graph, since it decides in every step: ``torch.compile(net, fullgraph=True)`` refuses it.
    Batches are counted at the interface, those that it gave credit for; the count is in the state dict.

    Args:
        rule: what is handed over to.
        warm_up: batches for which the module below waits for the true gradient in any case.
        freeze_after: batches after which the rule learns no more; None for never.
        min_cosine: the module below waits as long as the measured cosine between credit and message is under
            this; None to trust the rule. Once the module learns from the rule, so do those above it: the
            message is then as true as theirs.
        memory: weight of the past in the running mean of the cosine, which starts at 0.

    Raises:
        ConfigError: if an argument is out of its range, or the rule sends ahead of what it learns from, or corrects its
            credit later.

    >>> import synthgrad as sg
    >>> sg.HandOver(sg.SyntheticGradient(context=10), warm_up=500, min_cosine=0.2)
    HandOver(
      warm_up=500, min_cosine=0.2
      (rule): SyntheticGradient(linear M, 10 classes)
    )
    """

    def __init__(
        self,
        rule: Rule,
        *,
        warm_up: int = 0,
        freeze_after: int | None = None,
        min_cosine: float | None = None,
        memory: float = 0.9,
    ) -> None:
        super().__init__(rule)
        check_whole("warm_up", warm_up, 0, "number of batches")
        if freeze_after is not None:
            check_whole("freeze_after", freeze_after, 0, "number of batches")
        if min_cosine is not None and not -1 <= min_cosine <= 1:
            raise ConfigError(f"min_cosine={min_cosine!r}: expected a number from -1 to 1, or None")
        if not 0 <= memory < 1:
            raise ConfigError(f"memory={memory!r}: expected a number from 0 up to, not including, 1")
        self.warm_up = warm_up
        self.freeze_after = freeze_after
        self.min_cosine = min_cosine
        self.memory = memory
        self._adopt(rule)
        self.batches: Tensor
        self.cosine: Tensor
        self._register_counter("batches")
        self.register_buffer("cosine", torch.zeros(()))

    def extra_repr(self) -> str:
        given = {"warm_up": self.warm_up, "freeze_after": self.freeze_after, "min_cosine": self.min_cosine}
        return ", ".join(f"{name}={value}" for name, value in given.items() if value not in (0, None))

    def _adopt(self, rule: Rule) -> None:
        super()._adopt(rule)
        self.listens = rule.listens or self.min_cosine is not None
        self.waits = rule.waits or self.warm_up > 0 or self.min_cosine is not None

    def check(self, h: Tensor, info: Info) -> None:
        if torch.compiler.is_compiling():
            raise ConfigError(
                f"interface '{self.name}': HandOver decides in every step, which a graph of the whole network cannot; "
                "compile the network's modules (net.model[0].compile()), or leave out fullgraph=True"
            )
        super().check(h, info)

    def credit(self, h: Tensor, info: Info) -> Credit:
        wait, frozen = self._waits(), self._is_frozen()
        self._tick()
        with torch.set_grad_enabled(torch.is_grad_enabled() and not frozen):
            credit = self.rule.credit(h, info)
        if frozen:
            credit = replace(credit, loss=None, pending=())
        elif (
            self.min_cosine is not None
            and credit.delta is not None
            and (credit.pending or not self.rule.listens)
        ):
            # What is measured later is this credit. A rule that listens and leaves nothing has nothing added: engines would
            # take that for its prediction.
            credit = replace(credit, pending=(*credit.pending, credit.delta))
        return replace(credit, wait=credit.wait or wait)

    def observe(
        self, h: Tensor, info: Info, message: Message, pending: tuple[Tensor, ...] = ()
    ) -> Tensor | None:
        inner = self._measure(h, info, message, pending)
        # This batch has been counted already: the last of `freeze_after` is learned from.
        frozen = self.freeze_after is not None and self._counted() > self.freeze_after
        return None if frozen else self.rule.observe(h, info, message, inner)

    def observe_grad(
        self, h: Tensor, info: Info, message: Message, pending: tuple[Tensor, ...]
    ) -> tuple[Tensor | None, ...] | None:
        inner = pending if self.min_cosine is None else pending[:-1]
        grads = self.rule.observe_grad(h, info, message, inner)
        if grads is None or self.min_cosine is None:
            return grads
        self._measure(h, info, message, pending)
        return (*grads, None)

    def _waits(self) -> bool:
        if self._counted() < self.warm_up:
            return True
        # A cosine that is not a number is no reason to trust.
        return self.min_cosine is not None and not self.cosine.item() >= self.min_cosine

    def _is_frozen(self) -> bool:
        return self.freeze_after is not None and self._counted() >= self.freeze_after

    @torch.no_grad()
    def _measure(
        self, h: Tensor, info: Info, message: Message, pending: tuple[Tensor, ...]
    ) -> tuple[Tensor, ...]:
        """Put the agreement with a message into the running mean; return what is pending of the rule inside."""
        if self.min_cosine is None:
            return pending
        delta = pending[-1] if pending else self.rule.credit(h, info).delta
        if delta is not None:
            found = quality(delta, message.gradient).cosine
            if math.isfinite(found):
                self.cosine.mul_(self.memory).add_((1 - self.memory) * found)
        return pending[:-1]
