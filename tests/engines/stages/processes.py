"""Real processes for tests of stages: they join a group over gloo once, and then run functions on request."""

from __future__ import annotations

import gc
import multiprocessing
import os
import socket
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from tests.engines.stages.places import Outcome, Place

__all__ = ["Processes"]

TIMEOUT_S = 90.0


class Processes:
    """As many processes as a test needs, started when they are first asked for; use as a context.

    After a deadlock they are ended, and the next test that asks gets new ones.
    """

    def __init__(self, world: int) -> None:
        self._world = world
        self._ends: list[Connection] = []
        self._processes: list[Any] = []

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        for rank in range(self._world):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs, rank, self._world, port), daemon=True)
            process.start()
            theirs.close()
            self._ends.append(ours)
            self._processes.append(process)

    def outcomes(self, function: Callable[..., Any], *args: Any) -> list[Outcome]:
        """Run ``function(place, *args)`` everywhere; return what became of it, by rank."""
        if not self._processes:
            self._start()
        for end in self._ends:
            end.send((function, args))
        found: list[Outcome] = []
        for rank, end in enumerate(self._ends):
            if not end.poll(TIMEOUT_S):
                self.stop()
                raise AssertionError(f"rank {rank} gave no answer within {TIMEOUT_S:g} s: a deadlock")
            found.append(end.recv())
        return found

    def run(self, function: Callable[..., Any], *args: Any) -> list[Any]:
        """Run ``function(place, *args)`` everywhere; return its values, by rank. Fails where one raises."""
        found = self.outcomes(function, *args)
        for rank, outcome in enumerate(found):
            assert outcome.error is None, f"rank {rank}: {outcome.trace}"
        return [outcome.value for outcome in found]

    def __enter__(self) -> Processes:
        return self

    def __exit__(self, *args: object) -> None:
        self.stop()

    def stop(self) -> None:
        """End the processes: in order, if they can."""
        for end in self._ends:
            try:
                end.send(None)
            except OSError:
                continue
        for process in self._processes:
            process.join(10)
            if process.is_alive():
                process.kill()
                process.join()
        for end in self._ends:
            end.close()
        self._ends, self._processes = [], []


def _serve(end: Connection, rank: int, world: int, port: int) -> None:
    import torch
    import torch.distributed as dist

    from synthgrad.engines.stages import join

    torch.set_num_threads(1)
    os.environ |= {
        **{"RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world)},
        **{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)},
    }
    join("gloo", timeout_s=60)
    while True:
        asked = end.recv()
        if asked is None:
            break
        function, args = asked
        try:
            outcome = Outcome(function(Place(rank), *args))
        except BaseException as error:
            outcome = Outcome(None, f"{type(error).__name__}: {error}", traceback.format_exc())
        _part()
        end.send(outcome)
    dist.barrier()
    dist.destroy_process_group()


def _part() -> None:
    """Close this test's connections. Where a test has failed they hold what nobody reads, and gloo turns on the spot."""
    import torch.distributed as dist

    gc.collect()
    dist.barrier()  # a connection that is closed while a peer writes ends the peer's program
    for group in list(dist.distributed_c10d._world.pg_map):
        if group is not dist.group.WORLD:
            dist.destroy_process_group(group)
