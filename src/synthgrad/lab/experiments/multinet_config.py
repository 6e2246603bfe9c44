"""Configurations of two networks that tick at different rates."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from ...core import ConfigError
from .config import Schedule

__all__ = ["ClockedCell", "ClockedRun", "EdgeSettings"]


@dataclass(frozen=True, slots=True)
class ClockedCell:
    """What is trained on what.

    Attributes:
        data: labelled images of digits.
        arch: ``clocked``.
        layers: None.
        width: units of either network.
        period: ``T``: steps to a tick of B, and to a report of A.
    """

    data: str
    arch: str = "clocked"
    layers: int | None = None
    width: int = 128
    period: int = 4

    def __post_init__(self) -> None:
        for name in ("width", "period"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} {getattr(self, name)}: expected at least 1")


@dataclass(frozen=True, slots=True)
class EdgeSettings:
    """Settings of the rule between the networks.

    Attributes:
        hidden: widths of the hidden layers of ``M``. The default was chosen by ``multinet_search``.
        norm: BatchNorm in these.
        receiver: ``M`` sees the state of B, the ``s_B`` of ``M(h_A, s_B)``.
        lr_factor: learning rate of ``M`` over that of the networks.
    """

    hidden: tuple[int, ...] = ()
    norm: bool = True
    receiver: bool = True
    lr_factor: float = 1.0


@dataclass(frozen=True, slots=True)
class ClockedRun:
    """One run of the counting task; a step is a block of ``T²`` images of each stream.

    Attributes:
        hold_out: number of training images to measure on in place of the test set, for selections.
    """

    experiment: str
    tier: str
    method: str
    seed: int
    cell: ClockedCell
    schedule: Schedule
    rule: EdgeSettings = field(default_factory=EdgeSettings)
    hold_out: int = 0
    device: str = "cpu"
    precision: str = "float32"
    data_dir: str | None = None
    estimated_ratio: float | None = None
    tensorboard: str | None = None
    snapshots: str | None = None

    @property
    def label(self) -> str:
        """A short name for progress bars."""
        return f"{self.method}, seed {self.seed}"

    def recorded(self) -> dict[str, Any]:
        """Return the settings that stand under ``config`` in a record."""
        return {
            "lr": self.schedule.lr,
            "milestones": list(self.schedule.milestones),
            "eval_every": self.schedule.eval_every,
            "rule": {} if self.method == "bptt" else asdict(self.rule),
            "optimizer": "Adam",
            **({"hold_out": self.hold_out} if self.hold_out else {}),
            **({} if self.precision == "float32" else {"precision": self.precision}),
        }
