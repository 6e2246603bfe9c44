"""The protocol between the driver and what it drives: set up, step, evaluate, state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import nn

from ..run import Run
from ..run_monitor import RunMonitor

if TYPE_CHECKING:
    from ..tensorboard import EventWriter

__all__ = ["Evaluation", "Task"]

#: Figures of one evaluation, as they stand in a record.
Evaluation = dict[str, Any]


class Task:
    """Trains one run, step by step. A subclass sets up, does a step, evaluates, and has a state.

    Args:
        run: the run.

    Attributes:
        chunk: steps between two readings of the clock.
        monitor_every: steps between measurements of the interfaces' quality.
        finite: names of the figures of a point that a run which has not diverged keeps finite.
        net: the network, made by `set_up`; decoupled, if it is.
        trainer: the engine that trains it.
        data_sha256: sum of the data, or None where they are drawn.
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
        """Get ready for the first step of this process, which is not 0 where a run is resumed."""

    def draw_data(self) -> None:
        """Draw the data of the next step, where that shall not count as time of training."""

    def step(self) -> bool:
        """Do one step of training; return whether the run shall be evaluated at once."""
        raise NotImplementedError

    def evaluate(self, step: int) -> Evaluation:
        """Return the figures after a number of steps; no clock counts it."""
        raise NotImplementedError

    def flush(self) -> None:
        """Have the trainer do what it still waits to do, after the last step."""

    def metrics(self, curve: Sequence[Evaluation], elapsed_s: float) -> dict[str, Any]:
        """Return the figures of the finished run.

        Args:
            curve: the points of all evaluations.
            elapsed_s: seconds of training.
        """
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """Return all that the rest of the run depends on, beside network, trainer, monitor and random numbers."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state."""

    def draw_graph(self, events: EventWriter) -> None:
        """Show the network in the event files."""
