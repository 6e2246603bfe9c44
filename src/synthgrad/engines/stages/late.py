"""Complete unlock between processes: a stage trains on a synthetic input if the real one is late.

This removes the forward lock (DNI §2).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ...core import Batch, ConfigError, Info, InputPort, InputRule, Instruments, ShapeError
from .checksum import check_same_examples
from .elastic_links import ElasticBelow
from .links import BelowLink

__all__ = ["LateInput"]


class LateInput:
    """Feeds a stage with the activation from below, or with a synthetic input if the activation is late.

    At most as many activations may be missing as the window of the stage below allows; then the stage waits.

    The rule learns from every activation, even from one that arrives late. The answer for a batch is sent as
    soon as the stage has learned from the batch, perhaps before the activation arrives. Its message is then
    the gradient at the synthetic input, and the rule below treats it as the gradient at ``h``. The better the
    synthetic inputs, the smaller the difference.

    Args:
        rule: supplies the synthetic input from the network's input, which every process must then give.
        below: the link to the stage below.
        instruments: the guard, monitor and timeline.

    Attributes:
        num_synthetic: the number of batches so far that were trained on synthetic inputs.
    """

    def __init__(
        self, rule: InputRule, below: BelowLink | ElasticBelow, instruments: Instruments | None = None
    ) -> None:
        self._port = InputPort(rule, instruments)
        self._below = below
        # By step, the batch and checksum of each activation that is missing.
        self._missing: dict[int, tuple[Batch, int]] = {}
        # An activation of a batch that this stage has not reached yet: its step, the tensor, and its checksum.
        self._early: tuple[int, Tensor, int] | None = None
        self.num_synthetic = 0

    def feed(self, step: int, info: Info, checksum: int = 0) -> Tensor:
        """Return the input of a batch, detached: the real one, if it is here.

        Args:
            step: the step of the batch.
            info: what is known of the batch; it must have ``inputs``.
            checksum: the checksum of the examples that this process was given.

        Raises:
            ConfigError: if this process was given no input of the network.
            DataError: if an activation belongs to other examples than this process was given.
            StageError: if another process has stopped.
        """
        x = info.inputs
        if x is None:
            raise ConfigError(
                f"interface '{self._port.name}' has synthetic inputs, which are computed from the network's input: call "
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
        # Detached from what the input rule has computed: the stage learns from its own credit.
        if real is not None:
            return real.detach()
        self.num_synthetic += 1
        if not self._below.is_there:
            self._missing.pop(step, None)  # it will not come
        return self._port.supply(batch).h.detach()

    def catch_up(self) -> None:
        """Wait for the activations that are missing, and drop them: something else comes next."""
        while self._missing:
            early, self._early = self._early, None
            number, *_ = early or self._below.receive_next(wait=True) or (0,)
            self._missing.pop(number)

    def give_up(self) -> None:
        """Wait no more for what the stage below has not sent."""
        self._missing.clear()
        self._early = None

    @property
    def early_number(self) -> int | None:
        """The number of an activation that this stage has not reached yet; None if there is none."""
        return None if self._early is None else self._early[0]

    def skip(self) -> None:
        """Go on at a later batch: what is missing of earlier ones is not waited for."""
        self._missing.clear()

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
        if number not in self._missing:
            return  # it was given up
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
        """Return what is missing, and the activation that has come early, as plain containers of tensors."""
        return {
            "missing": [{**batch.state_dict(), "checksum": c} for batch, c in self._missing.values()],
            "early": self._early,
            "num_synthetic": self.num_synthetic,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load the state that `state_dict` returned, before the first step."""
        batches = [(Batch.from_state(saved), saved["checksum"]) for saved in state["missing"]]
        self._missing = {batch.entered: (batch, checksum) for batch, checksum in batches}
        early = state["early"]
        self._early = None if early is None else tuple(early)
        self.num_synthetic = int(state["num_synthetic"])
