"""Processes that measure, started once for many cases: one that hangs or dies costs its own line and nothing else."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import socket
import sys
import time
from multiprocessing.connection import Connection, wait
from typing import Any

import torch

from ....engines.stages import join
from .measure import Answer, Case, measure
from .zoo import ZOO

__all__ = ["Workers"]

_START_S = 120.0  # for the processes to load PyTorch and to find each other
_PARTING_S = 5.0


class Workers:
    """Processes that do one case at a time together; use as a context, or `stop` them.

    They start with the first case, and anew after a case that ended them or left them waiting.

    Args:
        world: number of processes.
        threads: of each.
        timeout_s: how long a case may take, in seconds.
    """

    def __init__(self, world: int, threads: int, timeout_s: float) -> None:
        self._world, self._threads, self._timeout_s = world, threads, timeout_s
        self._processes: list[Any] = []
        self._ends: list[Any] = []

    def ask(self, case: Case) -> Answer:
        """Have all processes do a case, and return what came out: that of the one that fared worst."""
        try:
            if not self._processes:
                self._start()
            answers = self._answers(case, self._timeout_s)
        except _LostError as gone:
            self._kill()
            return Answer(error=str(gone), failed=True)
        if self._world > 1 and not all(map(_is_in_order, answers)):
            self._kill()  # a process may wait for one that has given up
        return worst(answers)

    def stop(self) -> None:
        """End the processes, in order if they can. Again does nothing."""
        for end in self._ends:
            try:
                end.send(None)
            except OSError:
                continue
        until = time.monotonic() + _PARTING_S
        for process in self._processes:
            process.join(max(0.0, until - time.monotonic()))
        self._kill()

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *args: object) -> None:
        self.stop()

    def _kill(self) -> None:
        for process in self._processes:
            process.kill()
            process.join()
            process.close()
        for end in self._ends:
            end.close()
        self._processes, self._ends = [], []

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        for rank in range(self._world):
            ours, theirs = context.Pipe()
            arguments = (theirs, rank, self._world, port, self._threads)
            process = context.Process(target=_serve, args=arguments, daemon=True)
            process.start()
            theirs.close()
            self._ends.append(ours)
            self._processes.append(process)
        self._answers(None, _START_S)

    def _answers(self, case: Case | None, timeout_s: float) -> list[Answer]:
        """Return an answer of each process, to a case or to its start.

        Raises:
            _LostError: if one ends, or gives none in time.
        """
        found: dict[int, Answer] = {}
        until = time.monotonic() + timeout_s
        try:
            for end in self._ends if case else ():
                end.send(case)
            while len(found) < self._world:
                left = [end for rank, end in enumerate(self._ends) if rank not in found]
                ready = wait(left, max(0.0, until - time.monotonic()))
                if not ready:
                    ranks = ", ".join(str(k) for k in range(self._world) if k not in found)
                    raise _LostError(f"no answer of process {ranks} within {timeout_s:g} s; it was ended")
                found |= {rank: end.recv() for rank, end in enumerate(self._ends) if end in ready}
        except (EOFError, OSError) as error:
            raise _LostError("a process died without a word; the machine may be out of memory") from error
        return [found[rank] for rank in range(self._world)]


class _LostError(Exception):
    """A process has ended, or does not answer."""


def _is_in_order(answer: Answer) -> bool:
    """Has a process done its case, or refused it before it has met the others?"""
    return answer.error is None or answer.metrics.get("refused_at") == "construction"


def worst(answers: list[Answer]) -> Answer:
    """Return the answer that counts: a cause before those who were told of it, the largest deviation before others."""

    def badness(answer: Answer) -> tuple[bool, bool, float]:
        deviation = answer.metrics.get("max_relative_deviation", 0.0)
        return answer.error is not None, not answer.told, deviation

    return max(answers, key=badness)


def _serve(end: Connection, rank: int, world: int, port: int, threads: int) -> None:
    if sys.platform == "linux":
        # If the program that measures is killed, nobody reads the answers any more (PR_SET_PDEATHSIG).
        ctypes.CDLL(None).prctl(1, int(signal.SIGKILL))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the program that measures, which ends us
    torch.set_num_threads(threads)
    if world > 1:
        os.environ |= {
            **{"RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world)},
            **{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)},
        }
        join("gloo", timeout_s=_START_S)
    end.send(Answer())
    while (case := _next(end)) is not None:
        end.send(measure(ZOO[case.network], case, rank))
    # Threads may wait for processes that are gone already: nothing here is worth an orderly end.
    sys.stderr.flush()
    os._exit(0)


def _next(end: Connection) -> Case | None:
    try:
        return end.recv()
    except (EOFError, OSError):
        return None
