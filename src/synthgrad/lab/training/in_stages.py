"""Runs whose network is spread over processes: each drives the same task, and the last one's record counts."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.elastic.multiprocessing.api import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from ...core import ConfigError
from ...engines import Stages, StepRecord
from ...engines.stages import join
from ..records import Record
from .methods import method_named
from .payloads import FeedForward, LstmStack
from .run import Run
from .snapshot import RunProcesses, SingleProcess
from .worker import quiet_torchrun, set_up_worker

__all__ = [
    "StagesTrainer",
    "current_processes",
    "is_stage_process",
    "local_engine",
    "num_stage_processes",
    "run_in_stages",
]

#: In the environment of a process that is one of several.
_MARK = "SYNTHGRAD_STAGE"


class StagesTrainer:
    """`Stages` in the form that tasks ask for: with the whole network at hand whenever it is measured."""

    def __init__(self, stages: Stages) -> None:
        self.stages = stages
        self.optimizers = stages.optimizers

    def step(self, x: Tensor, y: Any, *, ids: Tensor | None = None) -> StepRecord:
        """Run a step of this process's stage; every process has the whole batch, and reads what is its own."""
        return self.stages.step(x, y, ids=ids)

    def flush(self) -> None:
        """Bring the weights of all stages into this process's network."""
        self.stages.gather()

    def close(self) -> None:
        """Part from the other processes."""
        self.stages.close()

    def state_dict(self) -> dict[str, Any]:
        """Return the state of this process's stage. Blocks; all must call it between the same two steps."""
        return self.stages.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from the state of this process's stage; all must."""
        self.stages.load_state_dict(state)


class _Processes:
    """The processes of a network that is spread over several, to agree on snapshots."""

    def __init__(self) -> None:
        self.stage, self.stages = dist.get_rank(), dist.get_world_size()
        self.launch = os.environ["TORCHELASTIC_RUN_ID"]
        self._group = dist.new_group(backend="gloo")  # apart from what the stages send each other

    def all_gather(self, value: Any) -> list[Any]:
        """Return the values that all processes gave, by stage. Blocks; all must call it."""
        found: list[Any] = [None] * self.stages
        dist.all_gather_object(found, value, self._group)
        return found


def current_processes() -> RunProcesses:
    """Return the processes that run a network together with this one."""
    return _Processes() if is_stage_process() else SingleProcess()


def is_stage_process() -> bool:
    """Is this process one of several that run a network together?"""
    return _MARK in os.environ


def local_engine(engine: str) -> str:
    """Return the engine that a run's network is prepared for in this process: outside its own it is only tried out."""
    return "in-process" if engine == "stages" and not is_stage_process() else engine


def num_stage_processes(run: Run) -> int:
    """Return how many processes a run has to be started in; 0 if it runs in this one."""
    payload = run.payload
    if not isinstance(payload, FeedForward | LstmStack) or payload.engine != "stages" or is_stage_process():
        return 0
    if method_named(run.method).rule is None:
        return 0
    return len(payload.at) + 1 if payload.at else 2


def run_in_stages(train: Callable[[Run], Record], run: Run, num_stages: int) -> Record:
    """Train a run in as many processes as it has stages; return the record of the last one.

    They are started and watched by what ``torchrun`` is made of.

    Args:
        train: trains a run in one of these processes.
        run: the run; each process leaves snapshots of its part.
        num_stages: processes.

    Raises:
        ConfigError: if a process dies without a record.
        KeyboardInterrupt: at SIGINT and SIGTERM; the processes have been ended then.
    """
    launch = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=num_stages,
        run_id=f"synthgrad-{os.getpid()}-{time.time_ns()}",
        logs_specs=DefaultLogsSpecs(log_dir=os.devnull),  # else a folder of each run stays behind
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",
        local_addr="127.0.0.1",
        max_restarts=0,
        monitor_interval=0.1,
        start_method="spawn",
    )
    try:
        with quiet_torchrun():
            found = elastic_launch(launch, _train_stage)(train, run, torch.get_num_threads())
    except SignalException as error:
        raise KeyboardInterrupt from error
    except ChildFailedError as error:
        raise ConfigError(
            f"a process of the stages engine died ({str(error).splitlines()[0]}); run with --engine in-process to see "
            "whether the network trains at all"
        ) from error
    records = [found[rank] for rank in sorted(found)]
    # One that fails stops the others, whose errors only repeat what it says.
    causes = (r for r in records if r.status != "ok" and " stopped: " not in (r.error or ""))
    return next(causes, records[-1])


def _train_stage(train: Callable[[Run], Record], run: Run, threads: int) -> Record:
    os.environ[_MARK] = os.environ["RANK"]
    set_up_worker()
    torch.set_num_threads(threads)
    rank, world = join("gloo")
    if rank < world - 1:
        run = replace(run, tensorboard=None)  # the last one has the losses
    try:
        return train(run)
    finally:
        dist.destroy_process_group()
