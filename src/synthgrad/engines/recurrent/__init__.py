"""Truncated BPTT with credit from beyond the unroll. Start with ``boundary.py``, then ``engine.py``."""

from .boundary import Boundary
from .engine import Recurrent, RecurrentNetwork

__all__ = ["Boundary", "Recurrent", "RecurrentNetwork"]
