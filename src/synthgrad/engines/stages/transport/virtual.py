"""Time that is computed: threads take turns, and the next one is always the one whose turn comes first on the clock.

::

    thread 0   runs at 0.0 │ sleeps until 0.5                 │ runs at 0.5 …
    thread 1               │ runs at 0.0 │ waits for a parcel │             │ wakes at 0.7, when it arrives
                           └─ the baton goes to whoever is due first; ties go to the lower rank

Computing takes no time; sleeping and waiting do. The thread that holds the baton is never later than any other, so what
it finds at its time is all that there is at that time. Nothing depends on how the machine schedules threads: two runs are
alike.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from typing import Any

import torch

from ....core import StageError

__all__ = ["VirtualTime"]

#: Tells when a wait will be over as far as is known now; None if that is not known.
Due = Callable[[], "float | None"]


class _ThreadState:
    """What a process has once and each thread is to have for itself: random numbers, and settings of PyTorch."""

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
        time: of this thread, in seconds.
        due: when it may go on.
        what: it waits for, in words; what became of it when it is over.
        is_over: it has ended.
        error: raised in it as soon as it goes on.
        baton: given to it when it may go on.
        surroundings: of this thread, while another one runs.
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
    """Runs functions in threads of their own, one at a time, by a clock of its own.

    Args:
        num_ranks: threads.
    """

    def __init__(self, num_ranks: int) -> None:
        self._before = _ThreadState()
        self._turns = [_VirtualThread(self._before) for _ in range(num_ranks)]
        self._stopped = False

    def run(self, functions: list[Callable[[], Any]]) -> None:
        """Run the functions, by rank, until all have ended. Blocks. They may not raise.

        Random numbers and settings begin in each as they are here, and are here afterwards as they were before.
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
            # Only if the wait was interrupted do threads still run: these are let go, and end at their next call.
            self._stopped = True
            for turn in self._turns:
                turn.baton.release()
            for thread in threads:
                thread.join(5.0)
            self._before.restore()

    def now(self, rank: int) -> float:
        """Return the time of a rank, in seconds."""
        return self._turns[rank].time

    def sleep(self, rank: int, seconds: float) -> None:
        """Let time pass for a rank."""
        until = self._turns[rank].time + max(seconds, 0.0)
        self.wait(rank, f"sleeps until {until:g} s", lambda: until)

    def wait(self, rank: int, what: str, due: Due) -> None:
        """Give the baton away until a rank is due. Blocks.

        Args:
            rank: that of the calling thread.
            what: it waits for, as in "waits for a parcel".
            due: tells when it may go on.

        Raises:
            StageError: if no rank will ever go on.
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
        self._go_on(turn)
        function()
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
        """Return who is due first. If nobody is, everybody is told, one after the other."""
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
