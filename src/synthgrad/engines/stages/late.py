"""Complete unlock between processes: a stage whose input is late trains on a synthetic one (DNI §2, forward lock)."""

from __future__ import annotations

from torch import Tensor

from ...core import ConfigError, Info, InputRule, ShapeError
from .checksum import refuse_other_examples
from .links import BelowLink

__all__ = ["LateInput"]


class LateInput:
    """Feeds a stage with what has come from below, or with what its input rule supplies in its place.

    As many activations may be missing as the window of the stage below has; with more the stage waits after all.

    Every activation that comes teaches the rule, early or late. The batch is answered when the stage has learned from
    it, so perhaps before it has come: its message is then the gradient at the synthetic input, which the rule below
    takes for that at ``h``. The better the synthetic inputs, the smaller the difference.

    Args:
        rule: stands in for the stage below; sees the network's input, which every process must then give.
        below: the link.

    Attributes:
        num_synthetic: batches so far that were trained on synthetic inputs.
    """

    def __init__(self, rule: InputRule, below: BelowLink) -> None:
        self._rule = rule
        self._below = below
        self._missing: dict[int, tuple[Tensor, Info, int]] = {}
        self._early: tuple[int, Tensor, int] | None = None  # of a batch that this stage has not reached yet
        self.num_synthetic = 0

    def feed(self, step: int, info: Info, checksum: int = 0) -> Tensor:
        """Return the input of a batch, detached: the real one, if it is here.

        Args:
            step: of the batch.
            info: what is known of it; its ``inputs`` must be there.
            checksum: of its examples, as this process was given them.

        Raises:
            ConfigError: if this process was given no input of the network.
            DataError: if an activation belongs to other examples than this process was given.
            StageError: if another process has stopped.
        """
        x = info.inputs
        if x is None:
            raise ConfigError(
                f"interface '{self._rule.name}' has synthetic inputs, which are made of the network's input: call "
                "step(x, y) with the input in every process"
            )
        self._rule.check(x, info)
        self._missing[step] = x, info, checksum
        real = None
        while (come := self._next(step)) is not None:
            batch, h, theirs = come
            self._learn(batch, h, theirs)
            if batch == step:
                real = h
        if real is not None:
            return real.detach()
        self.num_synthetic += 1
        return self._rule.supply(x, info).h.detach()

    def catch_up(self) -> None:
        """Wait for what is missing, and let it go: something else comes next."""
        while self._missing:
            early, self._early = self._early, None
            batch, *_ = early or self._below.come(wait=True) or (0,)
            self._missing.pop(batch)

    def _next(self, step: int) -> tuple[int, Tensor, int] | None:
        """Return the next activation up to that of this step, if it is here, or if too many are missing."""
        early, self._early = self._early, None
        if early is None and self._missing:
            early = self._below.come(wait=len(self._missing) > max(self._below.window, 1))
        if early is not None and early[0] > step:
            self._early = early
            return None
        return early

    def _learn(self, batch: int, h: Tensor, checksum: int) -> None:
        x, info, own = self._missing.pop(batch)
        refuse_other_examples(batch, checksum, own, self._rule.name)
        if h.shape[0] != x.shape[0]:
            raise ShapeError(
                f"a batch of {h.shape[0]} examples came to interface '{self._rule.name}', where {x.shape[0]} inputs were "
                "given: all processes must go through the data in the same order"
            )
        loss = self._rule.observe(x, info, h.detach())
        if loss is not None and loss.requires_grad:
            loss.backward()
