"""Stale gradients: the credit of an example is what came back for it in earlier epochs (DNI §3.1, baseline)."""

from __future__ import annotations

import torch
from torch import Tensor

from ..core import ConfigError, ContextError, Credit, CutError, Info, Message, Rule, ShapeError, Site
from ..core.given import brief, check_whole

__all__ = ["StaleGradient"]


class StaleGradient(Rule):
    """Credit ``δ̂ = e_i``, an exponential moving average of the messages of example ``i``.

    When a message ``δ`` comes, ``e_i ← decay · e_i + (1 − decay) · δ``; the first one is taken as it is.
    With ``decay=0`` the credit is the last message alone. Until an example has had a message, and where
    its last one is older than ``max_age`` steps, its credit is zero. The memory has a row for every
    example: ``num_examples`` times the size of ``h``. Examples are known by ``ids``, which engines take. Of sequences,
    ``(B, T, D)``, the gradient at every position is remembered, where there was no label too; all are of one length.

    Args:
        num_examples: examples in the data set; ids are 0 to ``num_examples − 1``.
        decay: from 0 up to, not including, 1.
        max_age: steps after which a message is too old (one epoch, say); None for never. Needs the
            number of the step, which engines tell.

    Raises:
        ConfigError: if an argument is out of its range.
    """

    def __init__(self, num_examples: int, decay: float = 0.0, max_age: int | None = None) -> None:
        super().__init__()
        check_whole("num_examples", num_examples, 1, "size of the data set")
        if not 0 <= decay < 1:
            raise ConfigError(f"decay={decay!r}: expected a number from 0 up to, not including, 1")
        if max_age is not None:
            check_whole("max_age", max_age, 1, "number of steps")
        self.num_examples = num_examples
        self.decay = decay
        self.max_age = max_age
        self.memory: Tensor
        self.written: Tensor

    def extra_repr(self) -> str:
        age = "" if self.max_age is None else f", max_age={self.max_age}"
        return f"{self.num_examples} examples, decay={self.decay:g}{age}"

    def build(self, site: Site) -> None:
        if len(site.shape) < 2:
            raise CutError(f"interface '{site.name}': a message of shape {site.shape} has no features")
        self.register_buffer("memory", torch.zeros(self.num_examples, *site.shape[1:]))
        # The step of the last message, -1 for none.
        self.register_buffer("written", torch.full((self.num_examples,), -1, dtype=torch.long))

    def check(self, h: Tensor, info: Info) -> None:
        ids = info.ids
        if ids is None:
            raise ContextError(
                f"interface '{self.name}': its rule remembers examples and got no ids; call "
                "trainer.step(x, y, ids=...), or run the network inside `with synthgrad.context(y, ids=...):`"
            )
        if not isinstance(ids, Tensor):
            raise ContextError(
                f"interface '{self.name}': ids are {brief(ids)}, expected a tensor; convert them by torch.as_tensor"
            )
        if ids.shape != h.shape[:1] or ids.is_floating_point():
            raise ContextError(
                f"interface '{self.name}': got ids of shape {tuple(ids.shape)} and dtype {ids.dtype}, expected "
                f"({h.shape[0]},) integers"
            )
        if h.shape[1:] != self.memory.shape[1:]:
            raise ShapeError(
                f"interface '{self.name}': got a message of shape {tuple(h.shape)}, and what is remembered of an example "
                f"has {tuple(self.memory.shape[1:])}, as in the example that decouple was given; fill shorter sequences up "
                "to that length"
            )
        if self.max_age is not None and info.step is None:
            raise ContextError(
                f"interface '{self.name}': max_age needs the number of the step; engines tell it, your own "
                "loop says `with synthgrad.context(y, ids=..., step=...):`"
            )

    def credit(self, h: Tensor, info: Info) -> Credit:
        assert info.ids is not None
        try:
            remembered = self.memory.index_select(0, info.ids)
        except IndexError:
            low, high = (int(v) for v in torch.aminmax(info.ids))
            raise ContextError(
                f"interface '{self.name}': got ids from {low} to {high}, expected 0 to {self.num_examples - 1}; "
                "give the rule num_examples of the whole data set"
            ) from None
        if self.max_age is not None:
            assert info.step is not None
            fresh = info.step - self.written.index_select(0, info.ids) <= self.max_age  # (B,)
            remembered = remembered * fresh.view(-1, *[1] * (h.ndim - 1)).to(remembered.dtype)
        return Credit(remembered.to(h.dtype))

    @torch.no_grad()
    def observe(self, h: Tensor, info: Info, message: Message, pending: tuple[Tensor, ...] = ()) -> None:
        ids = info.ids
        assert ids is not None
        new = message.gradient.to(self.memory.dtype)
        if self.decay:
            old = self.memory.index_select(0, ids)
            first = (self.written.index_select(0, ids) < 0).view(-1, *[1] * (new.ndim - 1))
            new = torch.where(first, new, torch.lerp(new, old, self.decay))
        self.memory.index_copy_(0, ids, new)
        self.written.index_fill_(0, ids, info.step or 0)
