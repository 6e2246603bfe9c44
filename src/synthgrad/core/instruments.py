"""What looks on while a network is trained: the guard, the monitor and the timeline, for every engine alike."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from .errors import ConfigError
from .events import Kind, Timeline
from .given import brief
from .quality import Guard, Monitor

__all__ = ["Instruments"]


@dataclass(slots=True)
class Instruments:
    """The instruments of an engine, shared by all its ports.

    Attributes:
        guard: stops at numbers that are not finite; None not to.
        monitor: measures the quality of credits; None to measure nothing.
        timeline: is filled with what happens; None to keep nothing.
        step: the step at hand, set by the engine.
    """

    guard: Guard | None = None
    monitor: Monitor | None = None
    timeline: Timeline | None = None
    step: int = 0

    def __post_init__(self) -> None:
        for name, given, kind, example in (
            ("monitor", self.monitor, Monitor, "monitor=synthgrad.Monitor(every=50)"),
            ("timeline", self.timeline, Timeline, "timeline=synthgrad.core.Timeline()"),
        ):
            if given is not None and not isinstance(given, kind):
                raise ConfigError(
                    f"{name}={brief(given)}: expected a {kind.__name__}, as in {example}, or None"
                )

    def log(self, kind: Kind, where: str, entered: int) -> None:
        """Put an event on the timeline, about a batch that entered in a step."""
        if self.timeline is not None:
            self.timeline.add(kind, where, self.step, entered)

    def check(self, where: str, value: Tensor, what: str = "message") -> bool:
        """Let the guard see a message, a gradient or a loss, detached; return whether it is finite, as far as is known.

        Raises:
            DivergedError: if it, or one noted earlier, is not finite, and the guard is to stop.
        """
        return self.guard is None or self.guard.check(where, self.step, value, what)

    def check_crossing(self, where: str, h: Tensor, delta: Tensor | None) -> bool:
        """Let the guard see an activation and the credit for it, in the same way."""
        return self.guard is None or self.guard.check_crossing(where, self.step, h, delta)

    def measure(self, name: str, delta: Tensor | None, gradient: Tensor) -> None:
        """Let the monitor compare a credit with the message that has come for it."""
        if self.monitor is not None:
            self.monitor.record(name, delta, gradient)

    def flush(self) -> None:
        """Read what the guard has queued on an accelerator.

        Raises:
            DivergedError: if any of it was not finite.
        """
        if self.guard is not None:
            self.guard.flush()
