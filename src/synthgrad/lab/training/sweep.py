"""Trains many runs, one after the other or in parallel, and writes each record as soon as its run has ended."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from pathlib import Path

from ...core import ConfigError
from ..names import is_own_data, own_text
from ..records import FILE, Record, append, finished, identity, locked, open_folder, read
from .machine import configure_process
from .payloads import FeedForward, LanguageModel
from .run import Run
from .snapshot import delete_snapshots, interval_s
from .tasks.feed_forward import data_for
from .tasks.language_model import tokens_for
from .train import empty_record, train
from .worker import set_up_worker

__all__ = ["Progress", "Sweep"]


class Progress:
    """Progress callbacks of a sweep; every method does nothing by default."""

    def started(self, run: Run) -> None:
        """Called when a run begins; not called for runs in parallel."""

    def stepped(self, run: Run, step: int) -> None:
        """Called with the number of steps done; not called for runs in parallel."""

    def ended(self, run: Run, record: Record) -> None:
        """Called when a run has ended and its record is written."""

    def skipped(self, run: Run) -> None:
        """Called when a run is skipped because it has a record."""


@dataclass
class Sweep:
    """A list of runs and the folder for their records.

    Attributes:
        runs: the runs.
        out: the results folder.
        resume: whether to skip runs that the folder's records show as done, and to resume others from their snapshots.
        jobs: number of runs in parallel, each in its own process.
        threads: number of CPU threads of each run; None for PyTorch's default.
    """

    runs: Sequence[Run]
    out: Path
    resume: bool = False
    jobs: int = 1
    threads: int | None = None

    def records(self, progress: Progress) -> Iterator[Record]:
        """Train all runs that are not done; yield every record, those of skipped runs first.

        Args:
            progress: object whose methods are called as the sweep goes on.

        Raises:
            ConfigError: if the folder cannot be written to, if another program is writing to it, or if the interval of
                snapshots in the environment is wrong.
        """
        interval_s()  # raises an error before any work is done
        path = open_folder(self.out)
        with locked(self.out):
            yield from self._skip_and_train(path, progress)

    def _skip_and_train(self, path: Path, progress: Progress) -> Iterator[Record]:
        known = {identity(r): r for r in read(path)[0]} if self.resume else {}
        done = finished(known.values())
        todo: list[Run] = []
        for run in self.runs:
            key = identity(empty_record(run, self.jobs))
            if key in done:
                self._check_same_data(run, known[key])
                delete_snapshots(self._snapshots, known[key])
                progress.skipped(run)
                yield known[key]
            else:
                if not self.resume:
                    # An earlier run may have left snapshots, from which this one must not resume.
                    delete_snapshots(self._snapshots, empty_record(run, self.jobs))
                todo.append(replace(run, snapshots=str(self._snapshots)))
        trained = self._side_by_side if self.jobs > 1 else self._in_turn
        for run, record in trained(todo, progress):
            append(path, record)
            if finished([record]):
                delete_snapshots(self._snapshots, record)
            progress.ended(run, record)
            yield record

    def _check_same_data(self, run: Run, record: Record) -> None:
        """Refuse to skip a run on the user's own data that was done with other contents of the same name."""
        recorded = record.metrics.get("data_sha256")
        if recorded is not None and _sha256_of_own_data(run) not in (None, recorded):
            raise ConfigError(
                f"--resume: {self.out} has runs on other contents of {run.payload.data}, which has changed since; name "
                "another folder with --out"
            )

    @property
    def _snapshots(self) -> Path:
        return self.out / "snapshots"

    def written(self) -> list[Record]:
        """Return the last record of each of these runs in the folder."""
        wanted = {identity(empty_record(run, self.jobs)) for run in self.runs}
        found = {identity(r): r for r in read(self.out / FILE)[0]}
        return [r for key, r in found.items() if key in wanted]

    def _in_turn(self, todo: Sequence[Run], progress: Progress) -> Iterator[tuple[Run, Record]]:
        configure_process(self.threads)
        for run in todo:
            progress.started(run)
            yield run, train(run, _step_callback(progress, run))

    def _side_by_side(self, todo: Sequence[Run], progress: Progress) -> Iterator[tuple[Run, Record]]:
        # Spawned, because a fork of a process with running threads may hang.
        context = multiprocessing.get_context("spawn")
        others = set(multiprocessing.active_children())
        pool = ProcessPoolExecutor(
            self.jobs, mp_context=context, initializer=_prepare_worker, initargs=(self.threads,)
        )
        try:
            futures = {pool.submit(train, run, None, self.jobs): run for run in todo}
            for future in as_completed(futures):
                yield futures[future], _result(future, futures[future], self.jobs)
        except BaseException:
            for worker in set(multiprocessing.active_children()) - others:
                worker.terminate()  # after an interruption, do not wait for the other runs
            pool.shutdown(wait=False, cancel_futures=True)
            raise
        pool.shutdown()


def _sha256_of_own_data(run: Run) -> str | None:
    """Return the checksum of a run's data if they are the user's own; None for others."""
    payload = run.payload
    if isinstance(payload, FeedForward) and is_own_data(payload.data):
        return data_for(payload.data, run.data_dir, payload.hold_out, run.device).sha256
    if isinstance(payload, LanguageModel) and own_text(payload.data) is not None:
        return tokens_for(run).sha256
    return None


def _step_callback(progress: Progress, run: Run) -> Callable[[int], None]:
    return lambda step: progress.stepped(run, step)


def _result(future: Future[Record], run: Run, jobs: int) -> Record:
    """Return a worker's record, or a failed one if the worker has died, for example for lack of memory."""
    try:
        return future.result()
    except BrokenProcessPool:
        error = "its process died without an error; the machine may be out of memory, use fewer --jobs"
        return replace(empty_record(run, jobs), status="failed", error=error)


def _prepare_worker(threads: int | None) -> None:
    set_up_worker()
    configure_process(threads)
