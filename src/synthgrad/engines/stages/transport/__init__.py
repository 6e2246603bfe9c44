"""Transports: how the ranks of an engine reach each other.

`Transport` is what an engine needs of one: a clock, what it knows of its peers, lines between neighbours, a sum and a
broadcast over all. `distributed` returns that of the process group which this process has joined: ``gloo.py`` or
``nccl.py``, on what they share in ``process_group.py``. `run_in_memory` runs a program in ranks that are threads of this
process, in virtual time.
"""

from .base import (
    ALIGNED,
    BrokenLine,
    Clock,
    HeaderCheck,
    Line,
    Lines,
    Peers,
    PeerStatus,
    RawParcel,
    Receiver,
    Sender,
    Transport,
    WaitLimit,
)
from .distributed import distributed
from .memory import Outcome, outcomes_in_memory, run_in_memory
from .world import Link

__all__ = [
    "ALIGNED",
    "BrokenLine",
    "HeaderCheck",
    "Clock",
    "WaitLimit",
    "Line",
    "Lines",
    "Link",
    "Outcome",
    "Peers",
    "PeerStatus",
    "RawParcel",
    "Receiver",
    "Sender",
    "Transport",
    "distributed",
    "outcomes_in_memory",
    "run_in_memory",
]
