"""Transports: how the ranks of an engine reach each other.

`Transport` is the protocol: a clock, what is known of the other ranks, lines between neighbours, a sum and a
broadcast over all. `distributed` returns the transport over the process group that this process has joined:
``gloo.py`` or ``nccl.py``, which share ``process_group.py``. `run_in_memory` runs a program in ranks that are
threads of one process, in virtual time.
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
from .memory import RankOutcome, outcomes_in_memory, run_in_memory
from .world import Link

__all__ = [
    "ALIGNED",
    "BrokenLine",
    "Clock",
    "HeaderCheck",
    "Line",
    "Lines",
    "Link",
    "PeerStatus",
    "Peers",
    "RankOutcome",
    "RawParcel",
    "Receiver",
    "Sender",
    "Transport",
    "WaitLimit",
    "distributed",
    "outcomes_in_memory",
    "run_in_memory",
]
