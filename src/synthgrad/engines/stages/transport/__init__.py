"""Transports: how the ranks of an engine reach each other.

`Transport` is what an engine needs of one: a clock, a small store to meet in, lines between neighbours, a sum and a
broadcast over all. `distributed` returns that of the process group which this process has joined: ``gloo.py`` or
``nccl.py``, on what they share in ``process_group.py``. `run_in_memory` runs a program in ranks that are threads of this
process, in virtual time.
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
from .memory import Outcome, outcomes_in_memory, run_in_memory
from .world import Link

__all__ = [
    "ALIGNED",
    "Check",
    "Clock",
    "Line",
    "Lines",
    "Link",
    "Outcome",
    "Received",
    "Receiver",
    "Sender",
    "Store",
    "Transport",
    "distributed",
    "outcomes_in_memory",
    "run_in_memory",
]
