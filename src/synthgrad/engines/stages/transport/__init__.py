"""Transports: how the ranks of an engine reach each other.

`Transport` is what an engine needs of one: a clock, a small store to meet in, lines between neighbours, a sum and a
broadcast over all. `distributed` returns that of the process group which this process has joined: ``gloo.py`` or
``nccl.py``, on what they share in ``process_group.py``.
"""

from .base import (
    ALIGNED,
    Check,
    Clock,
    Line,
    Lines,
    Received,
    Receiver,
    Sender,
    Store,
    Transport,
)
from .distributed import distributed

__all__ = [
    "ALIGNED",
    "Check",
    "Clock",
    "Line",
    "Lines",
    "Received",
    "Receiver",
    "Sender",
    "Store",
    "Transport",
    "distributed",
]
