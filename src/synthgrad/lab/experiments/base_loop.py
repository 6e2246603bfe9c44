"""What all runs have in common, whatever they train: a curve, a clock, and a state that is kept now and then."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from ...core import ConfigError
from .run_monitor import RunMonitor
from .snapshot import Snapshot
from .snapshot_file import Owner
from .tensorboard import Events

__all__ = ["BaseLoop", "Progress"]

#: Is told the number of steps done.
Progress = Callable[[int], None]


class BaseLoop:
    """One run. Subclasses prepare, train and measure; `train.run` calls them in that order.

    Attributes:
        net: what is trained, made by `prepare`; decoupled, if it is.
        trainer: what trains it, with a state of its own.
        data_sha256: sum of the data, or None where they are drawn.
        monitor: measures the quality of credits.
        curve: points, one for each evaluation.
        graph: the modules and interfaces, for the record; or None.
        events: is told of every point; or None.
        snapshot: where the state is kept now and then; or None.
    """

    device: str
    net: nn.Module
    trainer: Any
    data_sha256: str | None = None

    def __init__(self, device: str, progress: Progress | None, monitor_every: int = 20) -> None:
        self.device = device
        self.monitor = RunMonitor(monitor_every)
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
        """Return all that the rest of the run depends on, between two steps; subclasses add theirs."""
        return {
            "net": self.net.state_dict(),
            "trainer": self.trainer.state_dict(),
            "monitor": self.monitor.state_dict(),
            "rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state() if self.device == "cuda" else None,
            "step": self._step,
            "elapsed": self._elapsed,
            "curve": self.curve,
            "chunks": self._chunks,
            "resumed": self._resumed,
        }

    def take(self, state: Mapping[str, Any]) -> None:
        """Go on from a state."""
        self.net.load_state_dict(state["net"])
        self.trainer.load_state_dict(state["trainer"])
        self.monitor.load_state_dict(state["monitor"])
        torch.set_rng_state(state["rng"].cpu())
        if state["cuda_rng"] is not None and self.device == "cuda":
            torch.cuda.set_rng_state(state["cuda_rng"].cpu())
        self._step, self._elapsed = state["step"], state["elapsed"]
        self.curve, self._chunks = state["curve"], state["chunks"]
        self._resumed = [*state["resumed"], self._step]

    def restore(self) -> list[int]:
        """Go on from the snapshot, if there is one; return the steps at which the run was resumed so far.

        Raises:
            ConfigError: if there is one, of another run.
        """
        if self.snapshot is None:
            return self._resumed
        self.snapshot.belongs_to(Owner.forms(self.net), self.data_sha256)
        state = self.snapshot.load(self.device)
        if state is not None:
            try:
                self.take(state)
            except (KeyError, TypeError, ValueError, RuntimeError) as error:
                reason = (str(error).splitlines() or [""])[0]
                raise ConfigError(
                    f"{self.snapshot.path(int(state.get('step', 0)))}: is a snapshot that this run cannot go on from "
                    f"({type(error).__name__}: {reason}); move it away, or run without --resume into another folder"
                ) from error
        return self._resumed

    def add_point(self, point: dict[str, Any]) -> None:
        """Append a point to the curve."""
        self.curve.append(point)
        if self.events is not None:
            self.events.point(point)

    def keep(self) -> None:
        """Write a snapshot if it is time to; called between steps, as often as the loop looks up."""
        if self.snapshot is not None and getattr(self.trainer, "can_save", True):
            self.snapshot.save(self._step, self.state)

    def close(self) -> None:
        """Part from other processes, if the engine has any."""
        close = getattr(self.trainer, "close", None)
        if close is not None:
            close()

    def weights_sha256(self) -> str:
        """Return the sum of all parameters and buffers, names included: equal for runs that ended bit by bit alike."""
        found = hashlib.sha256()
        for name, value in self.net.state_dict().items():
            if isinstance(value, torch.Tensor):
                whole = value.detach().cpu().contiguous()
                found.update(f"{name} {whole.dtype} {tuple(whole.shape)}\n".encode())
                found.update(whole.flatten().view(torch.uint8).numpy().tobytes())
        return found.hexdigest()

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
