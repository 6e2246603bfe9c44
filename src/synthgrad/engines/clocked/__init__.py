"""Clocked networks: modules that tick at different rates and learn without waiting for each other.

Start with ``wiring.py`` (nodes, edges, clocks), then ``engine.py``.
"""

from .engine import Clocked, ClockedRecord
from .network import ClockedNetwork
from .wiring import Edge, Node

__all__ = ["Clocked", "ClockedNetwork", "ClockedRecord", "Edge", "Node"]
