"""Virtual time: threads run one at a time, always the one that is due first on a virtual clock.

::

    thread 0   runs at 0.0 │ sleeps until 0.5                 │ runs at 0.5 …
    thread 1               │ runs at 0.0 │ waits for a parcel │             │ wakes at 0.7, when it arrives
                           └─ the baton goes to the thread that is due first; ties go to the lower rank

Computing takes no time; sleeping and waiting do. The time of the thread with the baton is never later than
that of another thread, so everything that has happened before its time is known to it. Nothing depends on how
the machine schedules threads, so two runs are equal.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from typing import Any

import torch

from ....core import StageError

__all__ = ["VirtualTime"]

#: Returns when a wait will be over, as far as is known now; None if that is not known.
Due = Callable[[], "float | None"]


class _ThreadState:
    """Random numbers and settings of PyTorch, which a process has once and each rank needs for itself."""

    def __init__(self) -> None:
        self._random = random.getstate()
        self._torch = torch.get_rng_state()
        self._dtype = torch.get_default_dtype()
        self._fast = torch.backends.mha.get_fastpath_enabled()

    def restore(self) -> None:
        random.setstate(self._random)
        torch.set_rng_state(self._torch)
        torch.set_default_dtype(self._dtype)
        torch.backends.mha.set_fastpath_enabled(self._fast)


class _VirtualThread:
    """One thread.

    Attributes:
        time: the time of this thread, in seconds.
        due: returns when it may continue.
        what: what it is doing, in words, for errors.
        is_over: whether it has ended.
        error: an error that is raised in it as soon as it continues.
        baton: released when it may continue.
        surroundings: its random numbers and settings, while another thread runs.
    """

    def __init__(self, surroundings: _ThreadState) -> None:
        self.time = 0.0
        self.due: Due = lambda: 0.0
        self.what = "begins"
        self.is_over = False
        self.error: StageError | None = None
        self.baton = threading.Semaphore(0)
        self.surroundings = surroundings


class VirtualTime:
    """Runs functions in threads of their own, one at a time, by a virtual clock.

    Args:
        num_ranks: the number of threads.
    """

    def __init__(self, num_ranks: int) -> None:
        self._before = _ThreadState()
        self._turns = [_VirtualThread(self._before) for _ in range(num_ranks)]
        self._stopped = False
        self._raised: list[BaseException] = []

    def run(self, functions: list[Callable[[], Any]]) -> None:
        """Run the functions, by rank, until all have ended. Blocks.

        Random numbers and settings start in each function with their present values, and are restored at the
        end.

        Raises:
            BaseException: the first that a function has raised, once the others have ended without it.
        """
        threads = [
            threading.Thread(target=self._serve, args=(rank, f), name=f"synthgrad rank {rank}", daemon=True)
            for rank, f in enumerate(functions)
        ]
        for thread in threads:
            thread.start()
        try:
            self._hand_over()
            for thread in threads:
                thread.join()
        finally:
            # Threads still run only if the wait was interrupted; they end at their next call.
            self._stopped = True
            for turn in self._turns:
                turn.baton.release()
            for thread in threads:
                thread.join(5.0)
            self._before.restore()
        if self._raised:
            raise self._raised[0]

    def now(self, rank: int) -> float:
        """Return the time of a rank, in seconds."""
        return self._turns[rank].time

    def sleep(self, rank: int, seconds: float) -> None:
        """Let time pass for a rank."""
        until = self._turns[rank].time + max(seconds, 0.0)
        self.wait(rank, f"sleeps until {until:g} s", lambda: until)

    def wait(self, rank: int, what: str, due: Due) -> None:
        """Release the baton until a rank is due. Blocks.

        Args:
            rank: the rank of the calling thread.
            what: what it waits for, as in "waits for a parcel".
            due: returns when it may continue.

        Raises:
            StageError: if no rank will ever continue.
        """
        turn = self._turns[rank]
        turn.what, turn.due = what, due
        following = self._next()
        if following is not turn:
            turn.surroundings = _ThreadState()
            following.baton.release()
            self._acquire_baton(turn)
        if self._stopped:
            raise StageError("the run was interrupted")
        self._go_on(turn)

    def _serve(self, rank: int, function: Callable[[], Any]) -> None:
        turn = self._turns[rank]
        self._acquire_baton(turn)
        try:
            self._go_on(turn)
            function()
        except BaseException as error:  # is raised by `run`: here it would leave the others waiting for ever
            self._raised.append(error)
        turn.is_over = True
        turn.what = "has ended"
        self._hand_over()

    def _acquire_baton(self, turn: _VirtualThread) -> None:
        turn.baton.acquire()
        turn.surroundings.restore()

    def _go_on(self, turn: _VirtualThread) -> None:
        turn.time = max(turn.time, turn.due() or 0.0)
        turn.what = "runs"
        if turn.error is not None:
            error, turn.error = turn.error, None
            raise error

    def _hand_over(self) -> None:
        if not self._stopped and not all(turn.is_over for turn in self._turns):
            self._next().baton.release()

    def _next(self) -> _VirtualThread:
        """Return the thread that is due first. If none will ever be, an error is set in each thread."""
        alive = [turn for turn in self._turns if not turn.is_over]
        due = [(at, k) for k, turn in enumerate(alive) if (at := turn.due()) is not None]
        if not due:
            for turn in alive:
                turn.error = StageError(f"a deadlock: {self._who()}")
                turn.due = lambda at=turn.time: at
            due = [(turn.time, k) for k, turn in enumerate(alive)]
        return alive[min(due)[1]]

    def _who(self) -> str:
        return "; ".join(f"rank {k} {turn.what}" for k, turn in enumerate(self._turns))
