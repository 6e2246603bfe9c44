"""One line of the benchmark: a network is exact in an engine, refused, or at fault."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ....core import DivergedError, StageError, SynthgradError
from ..base import reason_of
from .entry import Entry
from .exactness import EXACT, FAULT, compare
from .trainers import StepCount, control, sizes, trained

__all__ = ["Answer", "Case", "measure"]


@dataclass(frozen=True, slots=True)
class Case:
    """What a line measures, as it is sent to the processes that do it.

    Attributes:
        network: name of the entry.
        method: name of the engine.
        dropout: probability of dropout and DropPath.
        steps: number of batches.
        batch_size: of the largest batches.
        seed: of weights and batches.
    """

    network: str
    method: str
    dropout: float
    steps: int
    batch_size: int
    seed: int = 0

    @property
    def sizes(self) -> tuple[int, ...]:
        """Sizes of the batches. Layers that run as one batch want one size."""
        if self.method == "layer_parallel":
            return (self.batch_size,) * self.steps
        return sizes(self.steps, self.batch_size)


@dataclass(frozen=True, slots=True)
class Answer:
    """What was found out.

    Attributes:
        metrics: of the record.
        error: why it is not exact, in one line; None if it is.
        failed: whether that is a fault; a refusal with a reason is none.
        told: whether the error says only that another process has stopped.
    """

    metrics: dict[str, Any] = field(default_factory=dict[str, Any])
    error: str | None = None
    failed: bool = False
    told: bool = False


def measure(entry: Entry, case: Case, rank: int = 0) -> Answer:
    """Train as the case says, and compare. Every process that takes part calls it; none raises."""
    count = StepCount()
    batches = entry.batches(case.sizes, case.seed)
    try:
        done = trained(entry, case.method, batches, case.dropout, count, case.seed, rank)
        found = compare(done.found, done.expected)
        metrics = {
            "exact": int(found.value <= EXACT),
            "refused": 0,
            "max_relative_deviation": found.value,
            "tensor": found.tensor,
            "steps": case.steps,
            "parameters": sum(p.numel() for p in done.net.model.parameters()),
            "modules": len(done.net.graph.modules),
            "cuts": ", ".join(done.net.interfaces),
        }
        if not metrics["exact"]:
            return Answer(metrics, f"'{found.tensor}' deviates by {found.value:.1e}", failed=True)
        if case.method == "layer_parallel" or case.dropout:
            return Answer(metrics)
        seen = compare(control(entry, case.method, batches, case.seed, rank), done.expected)
        metrics["control_deviation"] = seen.value
        if seen.value <= EXACT:
            why = f"the comparison is blind: gradients wrong by {FAULT:g} at every cut deviate by {seen.value:.1e}"
            return Answer(metrics | {"exact": 0}, why, failed=True)
        return Answer(metrics)
    except Exception as error:
        return _refusal(error, count)


def _refusal(error: Exception, count: StepCount) -> Answer:
    """Return what an error says: a refusal if the package raised it on purpose, else a fault."""
    refused = isinstance(error, SynthgradError) and not isinstance(error, DivergedError | StageError)
    metrics: dict[str, Any] = {"exact": 0, "refused": int(refused), "steps": count.steps or 0}
    if refused:
        metrics["refused_at"] = "construction" if count.steps is None else f"step {count.steps + 1}"
    return Answer(metrics, reason_of(error), failed=not refused, told=isinstance(error, StageError))
