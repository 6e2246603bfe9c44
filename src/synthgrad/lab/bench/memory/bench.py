"""``bench memory``: bytes held for backward, and the process's peak, of one step; of the network that is asked for."""

from __future__ import annotations

from ..base import Setting
from ..declarations import MEMORY, MemoryScope
from .dense import DenseBench
from .lstm import LstmBench

__all__ = ["BENCHMARK", "MemoryBench"]


class MemoryBench:
    """The benchmarks of fully connected networks and of LSTMs as one."""

    declared = MEMORY
    networks = {"fcn": DenseBench(), "lstm": LstmBench()}

    def settings(self, scope: MemoryScope) -> list[Setting]:
        """Return what is to be measured; raise `ConfigError` if it cannot be."""
        return self.networks[scope.arch].settings(scope)

    def close(self) -> None:
        """Let go of nothing: every line has a process of its own."""


BENCHMARK = MemoryBench()
