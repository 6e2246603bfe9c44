"""Runs many configurations, one after the other or side by side, and writes each record as it comes."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from pathlib import Path

from ..records import FILE, Record, append, finished, identity, locked, open_folder, read
from .machine import prepare
from .run_config import AnyRun
from .snapshot import drop_snapshots, interval_s
from .train import blank, run
from .worker import settle

__all__ = ["Listener", "Sweep"]


class Listener:
    """Is told how a sweep goes; the command line shows it, a test may ignore it."""

    def started(self, config: AnyRun) -> None:
        """A run begins (only where runs come one after the other)."""

    def stepped(self, config: AnyRun, step: int) -> None:
        """A run has done this many steps."""

    def ended(self, config: AnyRun, record: Record) -> None:
        """A run has ended and its record is written."""

    def skipped(self, config: AnyRun) -> None:
        """A run was done before, and is not repeated."""


@dataclass
class Sweep:
    """A list of runs and where their records go.

    Attributes:
        configs: the runs.
        out: the results folder.
        resume: skip the runs that the folder's records show as done, and go on from the snapshots of others.
        jobs: runs side by side, each in a process of its own.
        threads: threads of each.
    """

    configs: Sequence[AnyRun]
    out: Path
    resume: bool = False
    jobs: int = 1
    threads: int | None = None

    def records(self, listener: Listener) -> Iterator[Record]:
        """Do what is left to do; yield every record, those of skipped runs first.

        Raises:
            ConfigError: if nothing can be written to the folder, another program is writing to it, or the environment
                says nothing proper about snapshots.
        """
        interval_s()
        path = open_folder(self.out)
        with locked(self.out):
            yield from self._done_and_left(path, listener)

    def _done_and_left(self, path: Path, listener: Listener) -> Iterator[Record]:
        known = {identity(r): r for r in read(path)[0]} if self.resume else {}
        done = finished(known.values())
        todo: list[AnyRun] = []
        for config in self.configs:
            key = identity(blank(config, self.jobs))
            if key in done:
                drop_snapshots(self._snapshots, known[key])
                listener.skipped(config)
                yield known[key]
            else:
                if not self.resume:  # what was left of it must not be taken up
                    drop_snapshots(self._snapshots, blank(config, self.jobs))
                todo.append(replace(config, snapshots=str(self._snapshots)))
        runs = self._side_by_side if self.jobs > 1 else self._in_turn
        for config, record in runs(todo, listener):
            append(path, record)
            if finished([record]):
                drop_snapshots(self._snapshots, record)
            listener.ended(config, record)
            yield record

    @property
    def _snapshots(self) -> Path:
        return self.out / "snapshots"

    def written(self) -> list[Record]:
        """Return the records of these runs that are in the folder, the last one of each run."""
        wanted = {identity(blank(config, self.jobs)) for config in self.configs}
        found = {identity(r): r for r in read(self.out / FILE)[0]}
        return [r for key, r in found.items() if key in wanted]

    def _in_turn(self, todo: Sequence[AnyRun], listener: Listener) -> Iterator[tuple[AnyRun, Record]]:
        prepare(self.threads)
        for config in todo:
            listener.started(config)
            yield config, run(config, _steps_of(listener, config))

    def _side_by_side(self, todo: Sequence[AnyRun], listener: Listener) -> Iterator[tuple[AnyRun, Record]]:
        # Spawned, not forked: a fork of a process with live threads may hang.
        context = multiprocessing.get_context("spawn")
        others = set(multiprocessing.active_children())
        pool = ProcessPoolExecutor(
            self.jobs, mp_context=context, initializer=_prepare_worker, initargs=(self.threads,)
        )
        try:
            futures = {pool.submit(run, config, None, self.jobs): config for config in todo}
            for future in as_completed(futures):
                yield futures[future], _result(future, futures[future], self.jobs)
        except BaseException:
            for worker in set(multiprocessing.active_children()) - others:
                worker.terminate()  # interrupted: do not wait for runs that nobody wants any more
            pool.shutdown(wait=False, cancel_futures=True)
            raise
        pool.shutdown()


def _steps_of(listener: Listener, config: AnyRun) -> Callable[[int], None]:
    return lambda step: listener.stepped(config, step)


def _result(future: Future[Record], config: AnyRun, jobs: int) -> Record:
    """Return a worker's record, or one that says that the worker died (out of memory, say)."""
    try:
        return future.result()
    except BrokenProcessPool:
        error = "its process died without a word; the machine may be out of memory, try fewer --jobs"
        return {**blank(config, jobs), "status": "failed", "error": error}


def _prepare_worker(threads: int | None) -> None:
    settle()
    prepare(threads)
