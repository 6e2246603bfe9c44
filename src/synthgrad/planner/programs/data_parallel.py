"""Data parallel training: every process has the whole network, and a ring averages the gradients, bucket by bucket."""

from __future__ import annotations

import math
from collections.abc import Iterator

from ...core import ConfigError
from ..actions import Action, Compute, Job, Mark, Post, Send, Tag, Wait, WaitSent
from ..costs import StageCost

__all__ = ["data_parallel"]

#: As `DistributedDataParallel` has them: a small first bucket, then larger ones.
_FIRST_BUCKET, _BUCKET = 1 << 20, 25 << 20
#: As gloo's ring has them: no segment is larger, and each process has two of them under way at least.
_SEGMENT, _UNDER_WAY = 1 << 20, 2
#: Threads of a process that communicate: as many buckets are reduced at the same time.
_THREADS = 2


def data_parallel(
    cost: StageCost, *, processes: int, batch_size: int = 1, steps: int = 3, name: str = "data_parallel"
) -> Job:
    """Return the job of data parallel processes.

    Each has its share of the batch. Its gradients are complete from the top of the network down, in buckets; the
    all-reduce of a bucket goes on while the process computes the next one. A ring is ``2 (K − 1)`` rounds of each
    bucket's ``K`` parts, which go in segments, two of them under way.

    Args:
        cost: of the whole network, for the whole batch.
        processes: how many.
        batch_size: examples of a step of all processes together.
        steps: to simulate, 2 or more; all but the first are measured.
        name: for tables.

    Raises:
        ConfigError: if there are fewer than two processes.
    """
    if processes < 2:
        raise ConfigError(f"{processes} data parallel processes: expected 2 or more")
    buckets = _buckets(cost.parameter_bytes)

    def programs() -> list[Iterator[Action]]:
        return [
            *(_compute(cost, k, processes, buckets, steps) for k in range(processes)),
            *(_ring(k, n, processes, buckets, steps) for n in range(_THREADS) for k in range(processes)),
        ]

    owners = {processes * (n + 1) + k: k for n in range(_THREADS) for k in range(processes)}
    return Job(name, programs, processes, steps, batch_size=batch_size, owners=owners)


def _buckets(num_bytes: float) -> list[float]:
    """Return the sizes of buckets: the first, and those that follow."""
    found = [min(num_bytes, _FIRST_BUCKET)]
    while (left := num_bytes - sum(found)) > 0:
        found.append(min(left, _BUCKET))
    return found


def _compute(cost: StageCost, k: int, processes: int, buckets: list[float], steps: int) -> Iterator[Action]:
    part = cost.microbatch(processes)
    total = sum(buckets) or 1.0
    for step in range(steps):
        yield Compute("forward", step, part.forward_s, k, takes=part.held_bytes)
        for n, size in enumerate(buckets):
            frees = part.held_bytes if n + 1 == len(buckets) else 0.0
            yield Compute("backward", step, part.backward_s * size / total, k, frees=frees)
            yield Send(("ready", k, step * len(buckets) + n), _thread(k, n, processes), 0.0)
        for n in range(len(buckets)):
            yield Wait(("reduced", k, step * len(buckets) + n), _thread(k, n, processes))
        yield Compute("update", step, cost.optimizer_s, k)
        yield Mark(step)


def _thread(k: int, bucket: int, processes: int) -> int:
    """Return the number of what reduces a bucket for process ``k``."""
    return processes * (bucket % _THREADS + 1) + k


def _ring(k: int, thread: int, processes: int, buckets: list[float], steps: int) -> Iterator[Action]:
    """Yield what a thread does that communicates for process ``k``."""
    number = 0
    for step in range(steps):
        for n, size in enumerate(buckets):
            if n % _THREADS != thread:
                continue
            me, right, left = (_thread((k + by) % processes, n, processes) for by in (0, 1, -1))
            yield Wait(("ready", k, step * len(buckets) + n), k)
            segments = max(_UNDER_WAY, math.ceil(size / processes / _SEGMENT))
            segment = size / processes / segments
            for _phase in ("reduce and scatter", "gather"):
                rounds = (processes - 1) * segments
                yield from _rounds(me, right, left, number, rounds, segment)
                number += rounds
            yield Send(("reduced", k, step * len(buckets) + n), k, 0.0)
        yield Mark(step)


def _rounds(me: int, right: int, left: int, first: int, rounds: int, size: float) -> Iterator[Action]:
    def tag(to: int, n: int) -> Tag:
        return ("R", to, first + n)

    for n in range(rounds + _UNDER_WAY):
        if n >= _UNDER_WAY:
            yield Wait(tag(me, n - _UNDER_WAY), left)
            yield WaitSent(tag(right, n - _UNDER_WAY))
        if n < rounds:
            yield Post(tag(me, n), left)
            yield Send(tag(right, n), right, size)
