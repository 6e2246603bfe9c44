"""What a simulated run says: times, what was waited for, bytes, ages of messages, and a trace."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from .actions import Tag

__all__ = ["CAUSES", "Cause", "Run", "Span", "StageUse", "Transfer"]

#: What a process may wait for: another that computes, a wire that is busy, a message that is on its way.
Cause = Literal["peer", "bandwidth", "latency"]
CAUSES: tuple[Cause, ...] = ("peer", "bandwidth", "latency")


@dataclass(frozen=True, slots=True)
class Span:
    """A computation.

    Attributes:
        process: that computed.
        kind: what.
        stage, batch: of whose part, for which batch or microbatch.
        start_s, end_s: when.
    """

    process: int
    kind: str
    stage: int
    batch: int
    start_s: float
    end_s: float


@dataclass(frozen=True, slots=True)
class Transfer:
    """A message.

    Attributes:
        source, to: the processes.
        tag: its name.
        num_bytes: of it.
        sent_s, begins_s, leaves_s, arrives_s: when it was sent, when its first byte began and its last byte left, and
            when it was here.
    """

    source: int
    to: int
    tag: Tag
    num_bytes: float
    sent_s: float
    begins_s: float
    leaves_s: float
    arrives_s: float


@dataclass(frozen=True, slots=True)
class StageUse:
    """How a process spent the measured steps.

    Attributes:
        busy_s: seconds by kind of computation.
        idle_s: seconds by what it waited for.
        seconds: of the measured steps.
        bytes_per_step: that it sent in a step.
        peak_bytes: the most that it held at once, of activations for backward passes and of messages.
        ages: of the messages that its rule learned from: how many were so many steps old.
    """

    busy_s: Mapping[str, float]
    idle_s: Mapping[Cause, float]
    seconds: float
    bytes_per_step: float
    peak_bytes: float
    ages: Mapping[int, int] = field(default_factory=dict[int, int])

    @property
    def idle_share(self) -> float:
        """The share of the time in which it did not compute."""
        return 1 - sum(self.busy_s.values()) / self.seconds if self.seconds > 0 else 0.0

    @property
    def idle_cause(self) -> Cause | None:
        """What it waited for most; None if it did not wait."""
        cause = max(CAUSES, key=self.idle_s.__getitem__)
        return cause if self.idle_s[cause] > 0 else None


@dataclass(frozen=True, slots=True)
class Run:
    """A simulated run.

    Attributes:
        name: of the schedule.
        step_s: seconds of a step, over the measured ones.
        end_s: when all was done.
        batch_size: examples of a step.
        stages: how each process spent its time.
        spans, transfers: the trace; empty where none was asked for.
    """

    name: str
    step_s: float
    end_s: float
    batch_size: int
    stages: list[StageUse]
    spans: tuple[Span, ...] = ()
    transfers: tuple[Transfer, ...] = ()

    @property
    def examples_per_s(self) -> float:
        """Throughput."""
        return self.batch_size / self.step_s

    @property
    def idle_share(self) -> float:
        """The share of the time of all processes in which they did not compute."""
        return sum(s.idle_share for s in self.stages) / len(self.stages)

    @property
    def idle_cause(self) -> Cause | None:
        """What the processes waited for most; None if they did not wait."""
        total = {cause: sum(stage.idle_s[cause] for stage in self.stages) for cause in CAUSES}
        cause = max(CAUSES, key=total.__getitem__)
        return cause if total[cause] > 0 else None

    @property
    def bytes_per_step(self) -> float:
        """Bytes that all processes send in a step."""
        return sum(s.bytes_per_step for s in self.stages)

    @property
    def peak_bytes(self) -> float:
        """The most that any process held in flight."""
        return max(s.peak_bytes for s in self.stages)

    @property
    def mean_age(self) -> float | None:
        """Steps that messages were late when rules learned from them, on average; None where there were none."""
        ages = Counter[int]()
        for stage in self.stages:
            ages.update(stage.ages)
        count = sum(ages.values())
        return sum(age * n for age, n in ages.items()) / count if count else None

    def to_dict(self) -> dict[str, Any]:
        """Return the figures, without the trace, as plain containers."""
        return {
            "schedule": self.name,
            "step_ms": 1e3 * self.step_s,
            "examples_per_s": self.examples_per_s,
            "idle_share": self.idle_share,
            "idle_cause": self.idle_cause,
            "bytes_per_step": self.bytes_per_step,
            "peak_bytes": self.peak_bytes,
            "mean_age": self.mean_age,
            "stages": [
                {
                    "idle_share": s.idle_share,
                    "idle_ms": {k: 1e3 * v for k, v in s.idle_s.items()},
                    "busy_ms": {k: 1e3 * v for k, v in s.busy_s.items()},
                    "bytes_per_step": s.bytes_per_step,
                    "peak_bytes": s.peak_bytes,
                    "ages": {str(age): n for age, n in s.ages.items()},
                }
                for s in self.stages
            ],
        }
