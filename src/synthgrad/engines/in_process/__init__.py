"""The in-process engine updates every module as soon as its own forward pass is done.

Start with ``engine.py``.
"""

from .engine import InProcess
from .lags import Lag

__all__ = ["InProcess", "Lag"]
