"""``bench memory --arch lstm``: what is held for backward, over the length of unrolls and over the horizon.

A step is an episode of so many steps: full BPTT keeps all of it for one backward pass, truncated BPTT and synthetic
gradients an unroll at a time. Time is that of an unroll, an episode's over their number.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ....core import ConfigError
from ..declarations import LSTM_METHODS, MEMORY, MemoryScope
from ..unrolls import WHOLE, UnrollSize, make_unroll
from .probe import Memory, OwnProcessBench, probe

__all__ = ["BENCHMARK", "LstmBench", "observe"]


def observe(scope: MemoryScope, size: UnrollSize, method: str) -> dict[str, Any]:
    """Measure in this process: an episode."""
    torch.set_num_threads(scope.threads)
    memory = Memory(scope.device)
    step, alive = make_unroll(method, size, scope.device)
    assert size.horizon is not None
    num_unrolls = size.horizon // size.unroll

    def episode() -> None:
        for _ in range(1 if method == WHOLE else num_unrolls):
            step()

    found = probe(episode, alive, memory, scope.rounds)
    found["unroll_ms_median"] = found["step_ms_median"] / num_unrolls
    return found


class LstmBench(OwnProcessBench[MemoryScope, UnrollSize, str]):
    """A character model: an LSTM on one-hot tokens, a linear output, Adam (fused)."""

    axes = {
        **{"seed": "seeds", "width": "widths", "batch_size": "batch_sizes"},
        **{"horizon": "horizons", "unroll": "unrolls"},
    }
    size = UnrollSize
    declared = MEMORY
    reference = WHOLE
    observe = staticmethod(observe)

    def methods(self, scope: MemoryScope) -> Sequence[str]:
        return LSTM_METHODS

    def check(self, scope: MemoryScope) -> None:
        for horizon, unroll in itertools.product(scope.horizons, scope.unrolls):
            if horizon % unroll:
                raise ConfigError(
                    f"unroll of {unroll}: expected a number that divides the horizon of {horizon} steps"
                )

    def cases(self, scope: MemoryScope, size: UnrollSize) -> Sequence[str]:
        return tuple(dict.fromkeys((WHOLE, *scope.methods)))

    def cell(self, scope: MemoryScope, size: UnrollSize, case: str) -> Mapping[str, Any]:
        return {**size.cell, "threads": scope.threads}

    def label(self, scope: MemoryScope, size: UnrollSize) -> str:
        return f"LSTM {size.width}, batch {size.batch_size}, {size.horizon} steps, T {size.unroll}"


BENCHMARK = LstmBench()
