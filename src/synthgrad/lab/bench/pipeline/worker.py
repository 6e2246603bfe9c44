"""A process of the benchmark: it builds programs, and runs them when it is their turn.

All methods live in the same processes, each with its own weights.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ....engines.stages import join
from ...tasks import LabelledData, load
from ...training.machine import configure_process
from ..memory.probe import Memory
from ..workers import serve
from .cases import Case
from .learn import Goal, train
from .network import Size, workload_of
from .ours import DecoupledStages
from .peers import DataParallel, OneProcess, PipelineSchedule
from .program import Program

__all__ = ["Worker"]


@dataclass(slots=True)
class _FedProgram:
    """A program, what it is fed with, and the memory that it takes."""

    program: Program
    feed: Iterator[tuple[Tensor | None, Tensor]]
    memory: Memory


class Worker:
    """Builds programs and runs them on request.

    Args:
        size: of what is trained.
        data_dir: directory of data files, or None.
        timeout_s: how long to wait for another process.
    """

    def __init__(self, size: Size, data_dir: str | None, timeout_s: float) -> None:
        self._size = size
        self._data_dir = None if data_dir is None else Path(data_dir)
        self._timeout_s = timeout_s
        self._work = workload_of(size)
        self._batches = self._work.batches()  # the same for all, and nobody's memory
        self._built: dict[str, _FedProgram] = {}
        self._images: dict[str, LabelledData] = {}

    def build(self, name: str, case: Mapping[str, Any], lr: float) -> dict[str, Any]:
        """Make a program, to be run under a name."""
        Memory("cpu").start()  # gives back what others have freed, or this one would be given it
        memory = Memory("cpu")
        program = self._program(Case(**case), lr)
        rows, reads = program.rows, program.reads_input
        fed = itertools.cycle([(x[rows] if reads else None, y[rows]) for x, y in self._batches])
        memory.start()
        self._built[name] = _FedProgram(program, fed, memory)
        return {}

    def run(self, name: str, warm: int, steps: int) -> dict[str, Any]:
        """Run some steps without and some with a clock; return the seconds, and the program's figures.

        Figures are those of all steps so far; the loss is the last one's, where it is known.
        """
        built = self._built[name]
        step, feed = built.program.step, built.feed
        torch.set_num_threads(built.program.threads)
        try:
            for _ in range(warm):
                step(*next(feed))
            before = built.program.facts()
            start = time.perf_counter()
            loss = None
            for _ in range(steps):
                loss = step(*next(feed))
            seconds = time.perf_counter() - start
        finally:
            torch.set_num_threads(self._size.threads)
        return {
            "seconds": seconds,
            "loss": None if loss is None else float(loss),
            "before": before,
            "after": built.program.facts(),
            "peak_bytes": built.memory.peak(),
        }

    def learn(self, case: Mapping[str, Any], lr: float, goal: Mapping[str, Any]) -> dict[str, Any]:
        """Train anew until an accuracy is reached."""
        to, which = Goal(**goal), Case(**case)
        program = self._program(which, lr)
        if to.data not in self._images:
            self._images[to.data] = load(to.data, self._data_dir)
        images = self._images[to.data]
        torch.set_num_threads(program.threads)
        try:
            found = train(program, images, self._size.batch_size, self._size.seed, to, alone=which.is_alone)
            program.close()
        finally:
            torch.set_num_threads(self._size.threads)
        return found

    def _program(self, case: Case, lr: float) -> Program:
        size, work = self._size, self._work
        if case.is_alone:
            threads = case.threads(size.stages, size.threads)
            return OneProcess(work, lr, threads=threads, microbatches=case.microbatches or 1)
        if case.method == "independent":
            return OneProcess(work, lr, threads=size.threads)
        if case.method == "ddp":
            return DataParallel(work, lr)
        if case.observe_prob is not None:
            return DecoupledStages(case, work, lr, self._timeout_s)
        return PipelineSchedule(case, work, lr)


def _set_up(settings: dict[str, Any]) -> Mapping[str, Callable[..., dict[str, Any]]]:
    size, timeout_s = Size(**settings["size"]), settings["timeout_s"]
    configure_process(size.threads)
    join("gloo", timeout_s=timeout_s)
    worker = Worker(size, settings["data_dir"], timeout_s)
    return {"build": worker.build, "run": worker.run, "learn": worker.learn}


if __name__ == "__main__":
    serve(_set_up)
