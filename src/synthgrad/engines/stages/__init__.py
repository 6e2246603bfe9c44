"""Stages: processes that train parts of one network without waiting for each other.

Start with ``engine.py``; ``schedule.py`` is the same in the form of ``torch.distributed.pipelining``. How the processes
reach each other is ``transport/``, over ``torch.distributed`` or in memory; what a tensor is on the wire is ``codecs/``.
"""

from . import codecs, transport
from .assemble import Assembled, assemble
from .engine import Stages
from .schedule import ScheduleDecoupled
from .start import join
from .transport import Link, run_in_memory

__all__ = [
    "Assembled",
    "Link",
    "ScheduleDecoupled",
    "Stages",
    "assemble",
    "codecs",
    "join",
    "run_in_memory",
    "transport",
]
