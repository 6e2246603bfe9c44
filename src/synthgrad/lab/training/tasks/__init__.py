"""What trains each kind of payload. A new kind of task is a module here, with a class, and a payload that names it."""

from __future__ import annotations

from collections.abc import Callable

from ..run import Run
from .characters import CharactersTask
from .copying import CopyingTask
from .feed_forward import FeedForwardTask
from .lstm_stack import LstmStackTask
from .multirate import MultirateTask
from .task import Evaluation, Task

__all__ = [
    "CharactersTask",
    "CopyingTask",
    "Evaluation",
    "FeedForwardTask",
    "LstmStackTask",
    "MultirateTask",
    "Task",
    "task_of",
]

#: Tasks by the name that payloads give.
_TASKS: dict[str, Callable[[Run], Task]] = {
    "characters": CharactersTask,
    "copying": CopyingTask,
    "feed_forward": FeedForwardTask,
    "lstm_stack": LstmStackTask,
    "multirate": MultirateTask,
}


def task_of(run: Run) -> Task:
    """Return what trains a run; nothing is loaded or built yet."""
    return _TASKS[run.payload.task](run)
