"""Tasks: the classes that train each kind of payload. A new kind needs a module here and a payload that names it."""

from __future__ import annotations

from collections.abc import Callable

from ..run import Run
from .characters import CharactersTask
from .copying import CopyingTask
from .feed_forward import FeedForwardTask
from .language_model import LanguageModelTask
from .lstm_stack import LstmStackTask
from .multirate import MultirateTask
from .task import Evaluation, Task

__all__ = [
    "CharactersTask",
    "CopyingTask",
    "Evaluation",
    "FeedForwardTask",
    "LanguageModelTask",
    "LstmStackTask",
    "MultirateTask",
    "Task",
    "task_of",
]

#: Tasks by the name in `Payload.task`.
_TASKS: dict[str, Callable[[Run], Task]] = {
    "characters": CharactersTask,
    "copying": CopyingTask,
    "feed_forward": FeedForwardTask,
    "language_model": LanguageModelTask,
    "lstm_stack": LstmStackTask,
    "multirate": MultirateTask,
}


def task_of(run: Run) -> Task:
    """Return the task that trains a run; `Task.set_up` will load its data and build its network."""
    return _TASKS[run.payload.task](run)
