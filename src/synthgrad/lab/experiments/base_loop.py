"""What all runs have in common, whatever they train: a curve, a clock, and a state that is kept now and then."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from .snapshot import Snapshot
from .tensorboard import Events

__all__ = ["BaseLoop", "Progress"]

#: Is told the number of steps done.
Progress = Callable[[int], None]


class BaseLoop:
    """One run. Subclasses prepare, train and measure; `train.run` calls them in that order.

    Attributes:
        curve: points, one for each evaluation.
        graph: the modules and interfaces, for the record; or None.
        events: is told of every point; or None.
        snapshot: where the state is kept now and then; or None.
    """

    device: str

    def __init__(self, device: str, progress: Progress | None) -> None:
        self.device = device
        self.progress = progress
        self.curve: list[dict[str, Any]] = []
        self.graph: dict[str, Any] | None = None
        self.events: Events | None = None
        self.snapshot: Snapshot | None = None
        self._step = 0
        self._resumed: list[int] = []
        self._chunks: list[float] = []  # seconds of a step, mean over each chunk
        self._elapsed = 0.0

    def prepare(self) -> None:
        """Load the data, build what is trained."""
        raise NotImplementedError

    def train(self) -> None:
        """Run all steps, with an evaluation now and then that no clock counts."""
        raise NotImplementedError

    def metrics(self) -> dict[str, Any]:
        """Return the figures of the finished run."""
        raise NotImplementedError

    def state(self) -> dict[str, Any]:
        """Return all that the rest of the run depends on; subclasses add theirs."""
        return {
            "rng": torch.get_rng_state(),
            "step": self._step,
            "elapsed": self._elapsed,
            "curve": self.curve,
            "chunks": self._chunks,
            "resumed": self._resumed,
        }

    def take(self, state: Mapping[str, Any]) -> None:
        """Go on from a state."""
        torch.set_rng_state(state["rng"].cpu())
        self._step, self._elapsed = state["step"], state["elapsed"]
        self.curve, self._chunks = state["curve"], state["chunks"]
        self._resumed = [*state["resumed"], self._step]

    def restore(self) -> list[int]:
        """Go on from the snapshot, if there is one; return the steps at which the run was resumed so far."""
        state = None if self.snapshot is None else self.snapshot.load(self.device)
        if state is not None:
            self.take(state)
        return self._resumed

    def add_point(self, point: dict[str, Any]) -> None:
        """Append a point to the curve."""
        self.curve.append(point)
        if self.events is not None:
            self.events.point(point)

    def keep(self) -> None:
        """Write a snapshot if it is time to."""
        if self.snapshot is not None:
            self.snapshot.save(self.state)

    def close(self) -> None:
        """Part from other processes, if the engine has any."""
        close = getattr(getattr(self, "trainer", None), "close", None)
        if close is not None:
            close()

    def times(self) -> dict[str, Any]:
        """Return the clock's figures; the first chunks, which warm up, count for the total only."""
        chunks = self._chunks[3:] or self._chunks
        if not chunks:
            return {}
        p10, median, p90 = (float(v) * 1e3 for v in np.percentile(chunks, (10, 50, 90)))
        return {
            "train_s": round(self._elapsed, 3),
            "step_ms_median": round(median, 4),
            "step_ms_p10": round(p10, 4),
            "step_ms_p90": round(p90, 4),
        }
