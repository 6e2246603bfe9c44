"""Configurations of runs of stacked recurrent layers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from .config import RuleSettings
from .sequence_config import SequenceCell, SequenceRun

__all__ = ["StackCell", "StackRun"]


@dataclass(frozen=True, slots=True)
class StackCell(SequenceCell):
    """A stack of recurrent layers, cut between them.

    Attributes:
        engine: one of `ENGINES`.
        at: where it is cut; () for after every layer but the last.
    """

    engine: str = "in-process"
    at: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class StackRun(SequenceRun):
    """A run of a stack on a text; a step is an unroll.

    Attributes:
        rule: settings of the method's rule, as feed-forward networks have them.
        most_valid: characters of the validation part that are measured now and then; None for all.
    """

    cell: StackCell  # pyright: ignore[reportIncompatibleVariableOverride, reportGeneralTypeIssues]
    rule: RuleSettings = field(default_factory=RuleSettings)  # pyright: ignore[reportIncompatibleVariableOverride]
    most_valid: int | None = None

    def recorded(self) -> dict[str, Any]:
        """Return the settings that stand under ``config`` in a record."""
        schedule = self.schedule
        return {
            "lr": schedule.lr,
            "eval_every": schedule.eval_every,
            "rule": {} if self.method == "backprop" else self.rule.recorded(),
            "optimizer": "Adam",
            "most_valid": self.most_valid,
        }
