"""What every configuration of a run has, whatever it trains: all that sweeps, records and progress need."""

from __future__ import annotations

from dataclasses import Field
from typing import Any, ClassVar, Protocol

from .config import Schedule

__all__ = ["AnyRun"]


class AnyRun(Protocol):
    """A frozen dataclass that configures one run.

    Attributes:
        experiment, tier, method, seed: its place in the results.
        cell: what is trained on what, a dataclass with at least ``data``, ``arch``, ``layers`` and ``width``.
        schedule: how long and how fast.
        rule: settings of the method's rule, a dataclass.
        device: ``cpu`` or ``cuda``.
        data_dir: directory of data files, or None.
        estimated_ratio: what a step was expected to cost, over one of backpropagation, or None.
        tensorboard, snapshots: folders, or None; the run does not depend on them.
    """

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    @property
    def experiment(self) -> str: ...
    @property
    def tier(self) -> str: ...
    @property
    def method(self) -> str: ...
    @property
    def seed(self) -> int: ...
    @property
    def cell(self) -> Any: ...
    @property
    def schedule(self) -> Schedule: ...
    @property
    def rule(self) -> Any: ...
    @property
    def precision(self) -> str: ...
    @property
    def device(self) -> str: ...
    @property
    def data_dir(self) -> str | None: ...
    @property
    def estimated_ratio(self) -> float | None: ...
    @property
    def tensorboard(self) -> str | None: ...
    @property
    def snapshots(self) -> str | None: ...
    @property
    def label(self) -> str: ...

    def recorded(self) -> dict[str, Any]:
        """Return the settings that stand under ``config`` in a record: all that the results depend on."""
        ...
