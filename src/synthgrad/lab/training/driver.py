"""The training loop of all runs: steps in chunks, timing, evaluation, snapshots, progress, and divergence."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from ...core import ConfigError, DivergedError
from .machine import synchronize
from .snapshot import SnapshotStore
from .snapshot_file import Fingerprint
from .tasks import Evaluation, Task
from .tensorboard import EventWriter

__all__ = ["Driver", "StepCallback"]

#: A function that is called with the number of steps done.
StepCallback = Callable[[int], None]

#: Number of chunks for warming up: their time counts as training time, but not in the median step time.
_WARM_UP = 3


class Driver:
    """Trains one task from its set-up to its last step.

    Args:
        task: the task.
        progress: function that is called with the number of steps done after every chunk; or None.

    Attributes:
        task: the task.
        curve: the figures of each evaluation.
        step: number of steps done.
        elapsed_s: training time in seconds, without evaluations.
        events: writer of TensorBoard event files, or None.
        snapshot: store of snapshots, or None.
    """

    def __init__(self, task: Task, progress: StepCallback | None = None) -> None:
        self.task = task
        self.curve: list[Evaluation] = []
        self.step = 0
        self.elapsed_s = 0.0
        self._progress = progress
        self.events: EventWriter | None = None
        self.snapshot: SnapshotStore | None = None
        self._chunks: list[float] = []  # mean seconds per step of each chunk
        self._resumed_at: list[int] = []
        self._base_lrs: list[list[float]] = []
        self._lr_factor: float | None = None  # the one that is set

    def set_up(self) -> None:
        """Load the data, and build the network and its trainer.

        Raises:
            SynthgradError: if the run cannot begin.
        """
        self.task.set_up()
        self._base_lrs = [[g["lr"] for g in o.param_groups] for o in self.task.trainer.optimizers]

    def restore(self) -> list[int]:
        """Restore the last snapshot, if there is one; return all steps at which the run has been resumed.

        Raises:
            ConfigError: if the snapshot is that of another run, or cannot be restored.
        """
        if self.snapshot is None:
            return self._resumed_at
        self.snapshot.set_fingerprint(Fingerprint.tensor_forms(self.task.net), self.task.data_sha256)
        state = self.snapshot.load(self.task.run.device)
        if state is not None:
            try:
                self.load_state_dict(state)
            except (KeyError, TypeError, ValueError, RuntimeError) as error:
                reason = (str(error).splitlines() or [""])[0]
                raise ConfigError(
                    f"{self.snapshot.path(int(state.get('step', 0)))}: is a snapshot that this run cannot resume from "
                    f"({type(error).__name__}: {reason}); move it away, or run without --resume into another folder"
                ) from error
        return self._resumed_at

    def train(self) -> None:
        """Run all remaining steps.

        Raises:
            DivergedError: if a loss or another watched figure is not finite; the curve contains it.
        """
        task, schedule = self.task, self.task.run.schedule
        if self.events is not None:
            task.draw_graph(self.events)
        task.begin(self.step)
        while self.step < schedule.steps:
            requested = self._run_chunk(self._end_of_chunk() - self.step)
            if requested or self.step % schedule.eval_every == 0 or self.step == schedule.steps:
                self._evaluate()
            self._save()
            if self._progress is not None:
                self._progress(self.step)
        task.flush()

    def _set_lr_factor(self, factor: float) -> None:
        """Scale the initial learning rates, except those of rules with a constant learning rate."""
        if factor == self._lr_factor:
            return
        self._lr_factor = factor
        for optimizer, lrs in zip(self.task.trainer.optimizers, self._base_lrs, strict=True):
            for group, lr in zip(optimizer.param_groups, lrs, strict=True):
                if not group.get("constant_lr"):
                    group["lr"] = lr * factor

    def _end_of_chunk(self) -> int:
        """Return the step at which this chunk ends: at the latest before an evaluation."""
        step, schedule = self.step, self.task.run.schedule
        next_evaluation = step - step % schedule.eval_every + schedule.eval_every
        return min(step + self.task.chunk, schedule.steps, next_evaluation)

    def _run_chunk(self, num_steps: int) -> bool:
        """Run some steps, with timing; return whether the last one requests an evaluation."""
        task, requested = self.task, False
        task.draw_data()
        begun = time.perf_counter()
        for k in range(num_steps):
            self._set_lr_factor(task.run.schedule.lr_factor(self.step + k))
            requested = task.step()
        synchronize(task.run.device)  # so that the time includes the device's work
        seconds = time.perf_counter() - begun
        self.elapsed_s += seconds
        self._chunks.append(seconds / num_steps)
        self.step += num_steps
        return requested

    def _evaluate(self) -> None:
        point = {"step": self.step, "elapsed_s": round(self.elapsed_s, 4), **self.task.evaluate(self.step)}
        self.curve.append(point)
        if self.events is not None:
            self.events.point(point)
        watched = [point[name] for name in self.task.finite]
        if not all(math.isfinite(value) for value in watched if value is not None):
            raise DivergedError("loss", self.step - 1)

    def _save(self) -> None:
        """Write a snapshot if one is due and the trainer can be saved."""
        if self.snapshot is not None and getattr(self.task.trainer, "can_save", True):
            self.snapshot.save(self.step, self.state_dict)

    def state_dict(self) -> dict[str, Any]:
        """Return everything that the rest of the run depends on; called between two steps."""
        task = self.task
        return {
            "net": task.net.state_dict(),
            "trainer": task.trainer.state_dict(),
            "monitor": task.monitor.state_dict(),
            "task": task.state_dict(),
            "rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state() if task.run.device == "cuda" else None,
            "step": self.step,
            "elapsed_s": self.elapsed_s,
            "curve": self.curve,
            "chunks": self._chunks,
            "resumed_at": self._resumed_at,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        task = self.task
        task.net.load_state_dict(state["net"])
        task.trainer.load_state_dict(state["trainer"])
        task.monitor.load_state_dict(state["monitor"])
        task.load_state_dict(state["task"])
        torch.set_rng_state(state["rng"].cpu())
        if state["cuda_rng"] is not None and task.run.device == "cuda":
            torch.cuda.set_rng_state(state["cuda_rng"].cpu())
        self.step, self.elapsed_s = state["step"], state["elapsed_s"]
        self.curve, self._chunks = state["curve"], state["chunks"]
        self._resumed_at = [*state["resumed_at"], self.step]

    def metrics(self) -> dict[str, Any]:
        """Return the figures of the finished run."""
        return self.task.metrics(self.curve, self.elapsed_s)

    def close(self) -> None:
        """Disconnect from other processes, if the engine has any."""
        close = getattr(self.task.trainer, "close", None)
        if close is not None:
            close()

    def weights_sha256(self) -> str:
        """Return the SHA-256 of all parameters and buffers with their names: equal if runs end bit by bit the same."""
        digest = hashlib.sha256()
        for name, value in self.task.net.state_dict().items():
            if isinstance(value, torch.Tensor):
                tensor = value.detach().cpu().contiguous()
                digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
                digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def times(self) -> dict[str, float]:
        """Return training time and step times; empty before the first step."""
        chunks = self._chunks[_WARM_UP:] or self._chunks
        if not chunks:
            return {}
        p10, median, p90 = (1000 * float(v) for v in np.percentile(chunks, (10, 50, 90)))
        return {
            "train_s": round(self.elapsed_s, 3),
            "step_ms_median": round(median, 4),
            "step_ms_p10": round(p10, 4),
            "step_ms_p90": round(p90, 4),
        }
