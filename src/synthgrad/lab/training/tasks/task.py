"""The base class of tasks, whose methods the driver calls: set up, step, evaluate, state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import nn

from ..run import Run
from ..run_monitor import RunMonitor

if TYPE_CHECKING:
    from ..tensorboard import EventWriter

__all__ = ["Evaluation", "Task"]

#: Figures of one evaluation, by their names in records.
Evaluation = dict[str, Any]


class Task:
    """Trains one run, step by step. A subclass defines the set-up, a step, the evaluation, and the state.

    Args:
        run: the run.

    Attributes:
        run: the run.
        monitor: monitor of the interfaces' quality.
        chunk: number of steps between two readings of the clock.
        monitor_every: number of steps between measurements of the interfaces' quality.
        finite: names of figures that must be finite; otherwise the run has diverged.
        net: the network, plain or decoupled, built by `set_up`.
        trainer: the engine that trains the network, built by `set_up`.
        data_sha256: checksum of the data; None if they are generated.
        graph: modules and interfaces for the record, or None.
    """

    chunk: int = 1
    monitor_every: int = 20
    finite: Sequence[str] = ()

    net: nn.Module
    trainer: Any
    data_sha256: str | None = None
    graph: dict[str, Any] | None = None

    def __init__(self, run: Run) -> None:
        self.run = run
        self.monitor = RunMonitor(self.monitor_every)

    def set_up(self) -> None:
        """Load the data, and build the network and its trainer.

        Raises:
            SynthgradError: if the run cannot begin.
        """
        raise NotImplementedError

    def begin(self, step: int) -> None:
        """Prepare for the first step of this process; ``step`` is the number of steps done before a resume, or 0."""

    def draw_data(self) -> None:
        """Draw the data of the next chunk, if this must not count as training time."""

    def step(self) -> bool:
        """Train for one step; return whether to evaluate after this chunk even if no evaluation is due."""
        raise NotImplementedError

    def evaluate(self, step: int) -> Evaluation:
        """Return the figures after ``step`` steps; evaluation is not timed."""
        raise NotImplementedError

    def flush(self) -> None:
        """Apply the updates that the trainer still holds back; called after the last step."""

    def metrics(self, curve: Sequence[Evaluation], elapsed_s: float) -> dict[str, Any]:
        """Return the figures of the finished run.

        Args:
            curve: the figures of all evaluations.
            elapsed_s: training time in seconds.
        """
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """Return what the rest of the run depends on besides network, trainer, monitor and PyTorch's generators."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""

    def draw_graph(self, events: EventWriter) -> None:
        """Write the network's graph to the event files."""
