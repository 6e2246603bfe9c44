"""``bench unroll``: the time of an unroll of a recurrent network over that of a hand-written truncated BPTT.

All take turns on the same tokens; the ratio is taken in each round.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .declarations import UNROLL, UnrollScope
from .turns import TurnsBench
from .unrolls import HAND_WRITTEN, UnrollSize, make_unroll

__all__ = ["BENCHMARK", "UnrollBench"]


class UnrollBench(TurnsBench[UnrollScope, UnrollSize, str]):
    """Unrolls of a character model: an LSTM on one-hot tokens, a linear output, Adam (fused)."""

    declared = UNROLL
    axes = {"seed": "seeds", "width": "widths", "batch_size": "batch_sizes", "unroll": "unrolls"}
    size = UnrollSize
    compared_with = HAND_WRITTEN

    def cases(self, scope: UnrollScope, size: UnrollSize) -> Sequence[str]:
        return (HAND_WRITTEN, *scope.methods)

    def cell(self, scope: UnrollScope, size: UnrollSize, case: str) -> Mapping[str, Any]:
        return {**size.cell, "threads": scope.threads}

    def label(self, scope: UnrollScope, size: UnrollSize) -> str:
        return f"LSTM {size.width}, batch {size.batch_size}, T {size.unroll}"

    def material(self, scope: UnrollScope, size: UnrollSize, cases: Sequence[str]) -> None:
        return None

    def step(self, scope: UnrollScope, size: UnrollSize, case: str, material: None) -> Callable[[], object]:
        return make_unroll(case, size, scope.device)[0]


BENCHMARK = UnrollBench()
