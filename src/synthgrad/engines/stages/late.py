"""Complete unlock between processes: a stage whose input is late trains on a synthetic one (DNI §2, forward lock)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ...core import Batch, ConfigError, Info, InputPort, InputRule, Instruments, ShapeError
from .checksum import check_same_examples
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
        instruments: look on.

    Attributes:
        num_synthetic: batches so far that were trained on synthetic inputs.
    """

    def __init__(self, rule: InputRule, below: BelowLink, instruments: Instruments | None = None) -> None:
        self._port = InputPort(rule, instruments)
        self._below = below
        self._missing: dict[int, tuple[Batch, int]] = {}  # batch and checksum of what has not come, by step
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
                f"interface '{self._port.name}' has synthetic inputs, which are made of the network's input: call "
                "step(x, y) with the input in every process"
            )
        self._port.rule.check(x, info)
        batch = Batch(info, entered=step)
        self._missing[step] = batch, checksum
        real = None
        while (come := self._next(step)) is not None:
            number, h, theirs = come
            self._learn(number, h, theirs)
            if number == step:
                real = h
        if real is not None:
            return real.detach()
        self.num_synthetic += 1
        return self._port.supply(batch).h.detach()

    def catch_up(self) -> None:
        """Wait for what is missing, and let it go: something else comes next."""
        while self._missing:
            early, self._early = self._early, None
            number, *_ = early or self._below.receive_next(wait=True) or (0,)
            self._missing.pop(number)

    def _next(self, step: int) -> tuple[int, Tensor, int] | None:
        """Return the next activation up to that of this step, if it is here, or if too many are missing."""
        early, self._early = self._early, None
        if early is None and self._missing:
            early = self._below.receive_next(wait=len(self._missing) > max(self._below.window, 1))
        if early is not None and early[0] > step:
            self._early = early
            return None
        return early

    def _learn(self, number: int, h: Tensor, checksum: int) -> None:
        batch, own = self._missing.pop(number)
        name, x = self._port.name, batch.info.inputs
        check_same_examples(number, checksum, own, name)
        if x is not None and h.shape[0] != x.shape[0]:
            raise ShapeError(
                f"a batch of {h.shape[0]} examples came to interface '{name}', where {x.shape[0]} inputs were given: all "
                "processes must go through the data in the same order"
            )
        self._port.observe(batch, h.detach())

    def state_dict(self) -> dict[str, Any]:
        """Return what is still missing, and what has come early, as plain containers of tensors."""
        return {
            "missing": [{**batch.state_dict(), "checksum": c} for batch, c in self._missing.values()],
            "early": self._early,
            "num_synthetic": self.num_synthetic,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state, before the first step."""
        batches = [(Batch.from_state(saved), saved["checksum"]) for saved in state["missing"]]
        self._missing = {batch.entered: (batch, checksum) for batch, checksum in batches}
        early = state["early"]
        self._early = None if early is None else tuple(early)
        self.num_synthetic = int(state["num_synthetic"])
