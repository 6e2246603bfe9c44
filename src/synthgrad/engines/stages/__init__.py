"""Stages: processes that train the parts of one network without waiting for each other.

Start with ``engine.py``. ``schedule.py`` offers the same in the form of ``torch.distributed.pipelining``. The
processes exchange messages over ``transport/``, which uses ``torch.distributed`` or the memory of one
process; ``engines/codecs/`` defines how tensors are sent.
"""

from . import transport
from .assemble import AssembledRun, assemble
from .engine import Stages
from .schedule import ScheduleDecoupled
from .start import join
from .transport import Link, run_in_memory
from .transport.elastic_gloo import ElasticGloo
from .transport.members import serve_store

__all__ = [
    "AssembledRun",
    "ElasticGloo",
    "Link",
    "ScheduleDecoupled",
    "Stages",
    "assemble",
    "join",
    "run_in_memory",
    "serve_store",
    "transport",
]
