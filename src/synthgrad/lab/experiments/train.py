"""One run: trains a configuration and returns its record, whatever becomes of it."""

from __future__ import annotations

import traceback
from dataclasses import asdict
from functools import cache, partial
from pathlib import Path

import torch
from torch import nn

from ...core import DivergedError, SynthgradError
from ..records import SCHEMA, Record
from .base_loop import Progress
from .in_stages import peers_here, run_in_stages, stages_of
from .loops import loop_for
from .machine import describe, synchronize
from .names import run_name
from .run_config import AnyRun
from .snapshot import Snapshot
from .tensorboard import Events

__all__ = ["blank", "run"]


def run(config: AnyRun, progress: Progress | None = None, jobs: int = 1) -> Record:
    """Train one configuration and return its record, whatever becomes of it.

    Args:
        config: the run. Its snapshots stay when it has ended, until its record is written: see `Sweep`.
        progress: is told how far it is.
        jobs: how many runs share the machine, for the record.
    """
    record = blank(config, jobs)
    if num_stages := stages_of(config):
        try:
            return run_in_stages(partial(run, jobs=jobs), config, num_stages)
        except SynthgradError as error:
            return record | {"status": "failed", "error": str(error)}
    loop = loop_for(config, progress)
    try:
        _warm_up(config.device)
        if config.tensorboard is not None:
            loop.events = Events(Path(config.tensorboard) / run_name(record), record)
        if config.snapshots is not None:
            loop.snapshot = Snapshot(Path(config.snapshots), record, peers_here())
        with torch.random.fork_rng():
            torch.manual_seed(config.seed)
            loop.prepare()
            record["resumed_at"] = loop.restore()
            loop.train()
        record["weights_sha256"] = loop.weights_sha256()
        record["metrics"] = loop.metrics()
        loop.close()
    except DivergedError as error:
        record["status"], record["error"] = "diverged", str(error)
    except SynthgradError as error:
        record["status"], record["error"] = "failed", str(error)
    except Exception as error:  # out of memory, a fault of the user's network: a record that says so
        record["status"], record["error"] = "failed", f"{type(error).__name__}: {error}"
        record["traceback"] = traceback.format_exc()
    record["time"], record["curve"], record["graph"] = loop.times(), loop.curve, loop.graph
    if loop.events is not None:
        loop.events.close(record)
    return record


@cache
def _warm_up(device: str) -> None:
    """Take one step of something tiny, so that no run's clock counts what PyTorch loads at first use."""
    with torch.random.fork_rng():
        model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)).to(device)
        optimizer = torch.optim.Adam(model.parameters(), 1e-3, fused=True)
        nn.functional.cross_entropy(
            model(torch.ones(2, 2, device=device)), torch.zeros(2, device=device).long()
        ).backward()
        optimizer.step()
        synchronize(device)


def blank(config: AnyRun, jobs: int) -> Record:
    """Return the record of a run that has not begun."""
    cell = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(config.cell).items()}
    return {
        "schema": SCHEMA,
        "experiment": config.experiment,
        "tier": config.tier,
        "method": config.method,
        "seed": config.seed,
        "cell": cell,
        "steps": config.schedule.steps,
        "batch_size": config.schedule.batch_size,
        "metrics": {},
        "time": {},
        "curve": [],
        "status": "ok",
        "error": None,
        "config": config.recorded(),
        "env": describe(config.device, jobs),
        "resumed_at": [],
        "graph": None,
        "estimate": {"ratio_to_backprop": config.estimated_ratio},
    }
