"""Engines: where and in which order the modules of a decoupled network run.

``locked.py`` is the plain loop, ``in_process.py`` the unlocked one. All take a decoupled network, a
criterion and an optimizer factory, and offer ``step(x, y)``.
"""

from .base import Criterion, OptimizerFactory, StepRecord
from .in_process import InProcess
from .lags import Lag
from .locked import Locked

__all__ = ["Criterion", "InProcess", "Lag", "Locked", "OptimizerFactory", "StepRecord"]
