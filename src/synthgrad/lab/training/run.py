"""The complete description of one training run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..options import option
from .payloads import Payload
from .settings import OPTIMIZERS, Schedule, Settings, recorded_fields, refuse

__all__ = ["PRECISIONS", "Run"]

PRECISIONS = ("float32", "bfloat16")


@dataclass(frozen=True, slots=True)
class Run:
    """One training run.

    Attributes:
        experiment, tier, method, seed: names and seed that the record of the run has.
        payload: the network and its data.
        schedule: number of steps, batch size and learning rate.
        rule: settings of the method's rule.
        precision: ``float32`` or ``bfloat16``. With the latter, matrix products and convolutions run under autocast,
            while weights, optimizers, BatchNorm's statistics and the loss stay in float32.
        device: ``cpu`` or ``cuda``.
        data_dir: directory of data files, or None.
        estimated_ratio: estimated cost of a step as a ratio to backpropagation, or None; it does not affect the run.
        tensorboard: folder for event files, or None; it does not affect the run.
        snapshots: folder for snapshots, or None; it does not affect the run.
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
        if not (self.payload.any_optimizer or self.schedule.only_adam):
            refuse(
                f"network '{self.payload.arch}' on '{self.payload.data}' is trained by Adam with an update for each batch; "
                "leave out other optimizers, error feedback, accumulate and versions"
            )

        self._check_engine(getattr(self.payload, "engine", "in-process"))

    def _check_engine(self, engine: str) -> None:
        """Refuse settings for late gradients and larger updates with an engine that does not have them."""
        schedule = self.schedule
        on = {
            "error feedback": (schedule.error_feedback, ("in-process", "stages")),
            "versions of the weights": (schedule.versions is not None, ("in-process",)),
            "updates from several batches": (schedule.accumulate > 1, ("in-process", "plain", "stages")),
        }
        for what, (is_set, engines) in on.items():
            if is_set and engine not in engines:
                who = "backprop" if self.method == "backprop" else f"the {engine} engine"
                refuse(f"{what} with {who}: only the engine {' or '.join(engines)} has this; leave it out")

    @property
    def label(self) -> str:
        """A short name for progress bars."""
        return self.payload.label(self.method, self.seed)

    def config(self) -> dict[str, Any]:
        """Return the ``config`` of a record: all settings that the results depend on and the cell does not have."""
        skipped = ("steps", "batch_size", *self.payload.unrecorded)
        schedule = {k: v for k, v in recorded_fields(self.schedule).items() if k not in skipped}
        without_rule = self.method == self.payload.without_rule
        return {
            **schedule,
            "rule": {} if without_rule else self.rule.recorded(self.method),
            "optimizer": OPTIMIZERS[self.schedule.optimizer],
            **self.payload.config(),
            **({} if self.precision == "float32" else {"precision": self.precision}),
        }
