"""Schedules as data: what each process does, step by step, of synchronous and of decoupled training.

``pipelines.py`` takes the tables of `torch.distributed.pipelining`, ``decoupled.py`` those of `core.timetable`,
``data_parallel.py`` has the ring of an all-reduce. Each returns a `Job`, which `simulate` runs.
"""

from .data_parallel import data_parallel
from .decoupled import CODECS, Codec, backpropagation, decoupled, delayed, window_for
from .pipelines import SCHEDULES, pipeline

__all__ = [
    "CODECS",
    "SCHEDULES",
    "Codec",
    "backpropagation",
    "data_parallel",
    "decoupled",
    "delayed",
    "pipeline",
    "window_for",
]
