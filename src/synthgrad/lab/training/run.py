"""The description of one training run, complete: nothing is read from elsewhere."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from ..options import option
from .payloads import Payload
from .settings import Schedule, Settings, refuse

__all__ = ["PRECISIONS", "Run"]

PRECISIONS = ("float32", "bfloat16")


@dataclass(frozen=True, slots=True)
class Run:
    """One training run.

    Attributes:
        experiment, tier, method, seed: its place in the results.
        payload: what is trained on what.
        schedule: how long and how fast.
        rule: settings of the method's rule.
        precision: ``float32``, or ``bfloat16``: matrix products and convolutions under autocast, while weights,
            optimizers, BatchNorm's statistics and the loss stay in float32.
        device: ``cpu`` or ``cuda``.
        data_dir: directory of data files, or None.
        estimated_ratio: expected cost of a step over one of backpropagation, or None; the run does not depend on it.
        tensorboard: folder for event files, or None; the run does not depend on it.
        snapshots: folder for the states of runs under way, or None; the run does not depend on it.
    """

    experiment: str
    tier: str
    method: str
    seed: int
    payload: Payload
    schedule: Schedule
    rule: Settings
    precision: str = option(
        "float32",
        "Arithmetic of matrix products and convolutions; bfloat16 runs them under autocast.",
        choices=PRECISIONS,
        default="float32",
    )
    device: str = "cpu"
    data_dir: str | None = None
    estimated_ratio: float | None = None
    tensorboard: str | None = None
    snapshots: str | None = None

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            refuse(f"precision '{self.precision}' is unknown; accepted: {', '.join(PRECISIONS)}")

    @property
    def label(self) -> str:
        """A short name for progress bars."""
        return self.payload.label(self.method, self.seed)

    def config(self) -> dict[str, Any]:
        """Return the settings that stand under ``config`` in a record: all that the results depend on."""
        skipped = ("steps", "batch_size", *self.payload.unrecorded)
        schedule = {k: v for k, v in asdict(self.schedule).items() if k not in skipped}
        without_rule = self.method == self.payload.without_rule
        return {
            **schedule,
            "rule": {} if without_rule else self.rule.recorded(self.method),
            "optimizer": "Adam",
            **self.payload.config(),
            **({} if self.precision == "float32" else {"precision": self.precision}),
        }
