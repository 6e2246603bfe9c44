"""The in-process engine. Start with ``engine.py``."""

from .engine import InProcess
from .lags import Lag

__all__ = ["InProcess", "Lag"]
