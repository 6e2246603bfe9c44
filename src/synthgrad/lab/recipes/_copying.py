"""Tiers of the experiments on Copy and Repeat Copy: unrolls, schedules and sizes (DNI §3.2)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ..names import RECURRENT
from ..training.payloads import Copying
from ..training.settings import BoundarySettings, Schedule
from ._experiment import Group

__all__ = ["CHOSEN", "tiers"]

_VARIANTS = tuple(RECURRENT)
#: The paper's settings.
_FULL = BoundarySettings(alpha=0.1)
#: Settings for Copy in the quick tier. `copy_search` chose them on seed 0; results come from other seeds.
CHOSEN = BoundarySettings(hidden=(), alpha=0.9, max_norm=1.0)
_QUICK = Schedule(8_000, 64, lr=1e-3, milestones=(), eval_every=500)


def tiers(
    task: str, rule: BoundarySettings, quick_steps: Mapping[int, int], **fields: Any
) -> dict[str, list[Group]]:
    """Return the tiers of the experiment on a task.

    Args:
        task: ``copy`` or ``repeat_copy``.
        rule: settings of the rule in the smoke and quick tiers.
        quick_steps: number of batches in the quick tier, by length of unroll.
        fields: further fields of the payload in the smoke and quick tiers.
    """

    def small(unroll: int, width: int) -> Copying:
        return Copying(data=task, width=width, unroll=unroll, **fields)

    return {
        "smoke": [
            Group(small(3, 32), Schedule(60, 16, lr=3e-3, milestones=(), eval_every=30), _VARIANTS, rule)
        ],
        "quick": [
            Group(small(unroll, 128), replace(_QUICK, steps=steps), _VARIANTS, rule)
            for unroll, steps in quick_steps.items()
        ],
        "full": [
            Group(
                Copying(data=task, width=256, unroll=unroll),
                Schedule(300_000, 256, lr=7e-5, milestones=(), eval_every=2000),
                _VARIANTS,
                _FULL,
            )
            for unroll in (2, 3, 4, 5)
        ],
    }
