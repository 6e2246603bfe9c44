"""Calls that may block for too long: calls of the store of ``torch.distributed``, and the creation of groups.

Neither has a reliable timeout. A read of the store waits on a socket until the process that holds the store
answers, which a frozen process never does; and gloo looks for its peers in that store.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

__all__ = ["call_with_timeout"]

T = TypeVar("T")

#: How often the caller checks whether to go on waiting, in seconds.
_POLL_S = 0.05


def call_with_timeout(
    function: Callable[[], T], timeout_s: float, check: Callable[[], None] = lambda: None
) -> T:
    """Return what a function returns, unless that takes too long. Blocks.

    The function runs in a thread, which is left behind in its call after a timeout.

    Args:
        function: the function, which may block.
        timeout_s: how long to wait for it, in seconds.
        check: called repeatedly during the wait; an error that it raises ends the wait.

    Raises:
        TimeoutError: if it takes longer.
        Exception: the error that the function has raised.
    """
    found: list[Any] = []
    errors: list[BaseException] = []

    def call() -> None:
        try:
            found.append(function())
        except BaseException as error:  # raised in the thread of the caller
            errors.append(error)

    thread = threading.Thread(target=call, name="synthgrad call", daemon=True)
    thread.start()
    until = time.perf_counter() + timeout_s
    while True:
        thread.join(_POLL_S)
        if found:
            return found[0]
        if errors:
            raise errors[0]
        check()
        if time.perf_counter() > until:
            raise TimeoutError
