"""Which loop runs which configuration. Add a kind of run here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .base_loop import BaseLoop, Progress
from .char_loop import CharLoop
from .clocked_loop import ClockedLoop
from .config import RunConfig
from .copy_loop import CopyLoop
from .loop import Loop
from .multinet_config import ClockedRun
from .run_config import AnyRun
from .sequence_config import CharRun, CopyRun
from .stack_loop import StackLoop
from .stacks_config import StackRun

__all__ = ["loop_for"]

_LOOPS: dict[type, Callable[[Any, Progress | None], BaseLoop]] = {
    RunConfig: Loop,
    CopyRun: CopyLoop,
    CharRun: CharLoop,
    ClockedRun: ClockedLoop,
    StackRun: StackLoop,
}


def loop_for(config: AnyRun, progress: Progress | None = None) -> BaseLoop:
    """Return the loop of a run."""
    return _LOOPS[type(config)](config, progress)
