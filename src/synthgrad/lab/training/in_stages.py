"""Runs with the stages engine: each process trains its stage of the network, and the last one returns the record."""

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
from .payloads import FeedForward, LanguageModel, LstmStack
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

#: Environment variable that marks a process as one of several that train a network together.
_MARK = "SYNTHGRAD_STAGE"


class StagesTrainer:
    """Adapts `Stages` to the `Trainer` protocol: `flush` gathers the whole network, so that it can be evaluated."""

    def __init__(self, stages: Stages) -> None:
        self.stages = stages
        self.optimizers = stages.optimizers

    def step(self, x: Tensor, y: Any, *, ids: Tensor | None = None) -> StepRecord:
        """Run a step of this process's stage; every process gets the whole batch, and uses the part that it needs."""
        return self.stages.step(x, y, ids=ids)

    def predict(self, x: Tensor) -> Tensor | None:
        """Run forward through all stages; return the output in the last stage. All processes must call it."""
        return self.stages.predict(x)

    def flush(self) -> None:
        """Gather the weights of all stages into this process's network."""
        self.stages.gather()

    def close(self) -> None:
        """Disconnect from the other processes."""
        self.stages.close()

    def state_dict(self) -> dict[str, Any]:
        """Return the state of this process's stage. Blocks; all processes must call it between the same two steps."""
        return self.stages.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state of this process's stage; all processes must call it."""
        self.stages.load_state_dict(state)


class _StageProcesses:
    """The processes of a network's stages, which have to agree on snapshots."""

    def __init__(self) -> None:
        self.stage, self.stages = dist.get_rank(), dist.get_world_size()
        self.launch = os.environ["TORCHELASTIC_RUN_ID"]
        self._group = dist.new_group(backend="gloo")  # separate from the messages between stages

    def all_gather(self, value: Any) -> list[Any]:
        """Return the values of all processes, by stage. Blocks; all processes must call it."""
        found: list[Any] = [None] * self.stages
        dist.all_gather_object(found, value, self._group)
        return found


def current_processes() -> RunProcesses:
    """Return the processes that train a network together with this one."""
    return _StageProcesses() if is_stage_process() else SingleProcess()


def is_stage_process() -> bool:
    """Return whether this process is one of several that train a network together."""
    return _MARK in os.environ


def local_engine(engine: str) -> str:
    """Return the engine to use in this process: a network with stages is checked in process before they are started."""
    return "in-process" if engine == "stages" and not is_stage_process() else engine


def num_stage_processes(run: Run) -> int:
    """Return the number of processes that a run has to be started in; 0 if it runs in this one."""
    payload = run.payload
    known = isinstance(payload, FeedForward | LstmStack | LanguageModel)
    if not known or payload.engine != "stages" or is_stage_process() or method_named(run.method).rule is None:
        return 0
    if payload.at:
        return len(payload.at) + 1
    return (payload.modules or 2) if isinstance(payload, LanguageModel) else 2


def run_in_stages(train: Callable[[Run], Record], run: Run, num_stages: int) -> Record:
    """Train a run in as many processes as it has stages; return the record of the last one.

    The launcher of ``torchrun`` starts and watches the processes. Blocks until all have ended.

    Args:
        train: function that trains a run in one of the processes.
        run: the run; each process writes snapshots of its stage.
        num_stages: number of processes.

    Raises:
        ConfigError: if a process dies without a record.
        KeyboardInterrupt: at SIGINT and SIGTERM, after the processes have ended.
    """
    launch = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=num_stages,
        run_id=f"synthgrad-{os.getpid()}-{time.time_ns()}",
        logs_specs=DefaultLogsSpecs(log_dir=os.devnull),  # otherwise each run leaves a folder behind
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
        rank, failure = error.get_first_failure()
        raise ConfigError(
            f"the process of stage {rank} died (exit code {failure.exitcode}); use --engine in-process to check whether "
            "the network trains at all"
        ) from error
    records = [found[rank] for rank in sorted(found)]
    # A stage that fails stops the others, whose errors only repeat its own.
    causes = (r for r in records if r.status != "ok" and " stopped: " not in (r.error or ""))
    return next(causes, records[-1])


def _train_stage(train: Callable[[Run], Record], run: Run, threads: int) -> Record:
    os.environ[_MARK] = os.environ["RANK"]
    set_up_worker()
    torch.set_num_threads(threads)
    rank, world = join("gloo")
    if rank < world - 1:
        run = replace(run, tensorboard=None)  # only the last stage has the losses
    try:
        return train(run)
    finally:
        dist.destroy_process_group()
