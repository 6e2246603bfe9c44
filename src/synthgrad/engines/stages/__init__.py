"""Stages on ``torch.distributed``: processes that train parts of one network without waiting for each other.

Start with ``engine.py``; ``schedule.py`` is the same in the form of ``torch.distributed.pipelining``.
"""

from .engine import Stages
from .schedule import ScheduleDecoupled
from .start import join

__all__ = ["ScheduleDecoupled", "Stages", "join"]
