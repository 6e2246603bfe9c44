"""Trains one run and returns its record, even if the run fails."""

from __future__ import annotations

import traceback
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import torch
from torch import nn

from ...core import DivergedError, SynthgradError
from ..records import Cell, Config, Env, Estimate, Graph, Metrics, Point, Record, Time
from .driver import Driver, StepCallback
from .in_stages import current_processes, is_stage_process, num_stage_processes, run_in_stages
from .load import Load
from .machine import describe_environment, synchronize
from .run import Run
from .snapshot import SnapshotStore, run_name
from .tasks import task_of
from .tensorboard import EventWriter

__all__ = ["empty_record", "train"]


def train(run: Run, progress: StepCallback | None = None, jobs: int = 1) -> Record:
    """Train a run and return its record; a failure is the record's status, not an exception.

    Args:
        run: the run. Its snapshots remain when it has ended; `Sweep` deletes them after writing the record.
        progress: function that is called with the number of steps done, at intervals.
        jobs: number of runs in parallel on this machine, for the record.
    """
    record = empty_record(run, jobs)
    if num_stages := num_stage_processes(run):
        try:
            return run_in_stages(partial(train, jobs=jobs), run, num_stages)
        except SynthgradError as error:
            return replace(record, status="failed", error=str(error))
    driver = Driver(task_of(run), progress)
    try:
        _warm_up(run.device)
        if run.tensorboard is not None:
            driver.events = EventWriter(Path(run.tensorboard) / run_name(record), record)
        if run.snapshots is not None:
            driver.snapshot = SnapshotStore(Path(run.snapshots), record, current_processes())
        with torch.random.fork_rng():
            torch.manual_seed(run.seed)
            driver.set_up()
            record = replace(record, resumed_at=tuple(driver.restore()))
            load = Load()
            driver.train()
        # Runs in parallel, and other stages, would count as other programs.
        other_load = load.measured() if jobs == 1 and not is_stage_process() else None
        if other_load is not None:
            record = replace(record, env=Env({**record.env, "other_load": other_load}))
        record = replace(record, more={"weights_sha256": driver.weights_sha256()})
        record = replace(record, metrics=Metrics(driver.metrics()))
        driver.close()
    except DivergedError as error:
        record = replace(record, status="diverged", error=str(error))
    except SynthgradError as error:
        record = replace(record, status="failed", error=str(error))
    except Exception as error:  # for example out of memory, or an error in the user's network
        reason = f"{type(error).__name__}: {error}"
        more = {**record.more, "traceback": traceback.format_exc()}
        record = replace(record, status="failed", error=reason, more=more)
    graph = driver.task.graph
    record = replace(
        record,
        time=Time(driver.times()),
        curve=tuple(map(Point, driver.curve)),
        graph=None if graph is None else Graph(graph),
    )
    if driver.events is not None:
        driver.events.close(record)
    return record


@cache
def _warm_up(device: str) -> None:
    """Train a tiny network for one step, so that the time of a run does not include PyTorch's lazy loading."""
    with torch.random.fork_rng():
        model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)).to(device)
        optimizer = torch.optim.Adam(model.parameters(), 1e-3, fused=True)
        nn.functional.cross_entropy(
            model(torch.ones(2, 2, device=device)), torch.zeros(2, device=device).long()
        ).backward()
        optimizer.step()
        synchronize(device)


def empty_record(run: Run, jobs: int = 1) -> Record:
    """Return the record of a run before its first step: settings and environment, without results."""
    return Record(
        experiment=run.experiment,
        tier=run.tier,
        method=run.method,
        seed=run.seed,
        cell=Cell(run.payload.cell()),
        steps=run.schedule.steps,
        batch_size=run.schedule.batch_size,
        config=Config(run.config()),
        env=Env(describe_environment(run.device, jobs)),
        resumed_at=(),
        estimate=Estimate({"ratio_to_backprop": run.estimated_ratio}),
    )
