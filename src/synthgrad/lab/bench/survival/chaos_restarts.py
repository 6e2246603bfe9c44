"""A stage of 1F1B in ``bench chaos``, as torchrun starts it: if one dies, all are started again, from their last snapshots.

Every rank saves at the same steps, and keeps two snapshots: a rank that died while saving has the one before. BatchNorm
normalises each microbatch on its own, so without faults too the error is not quite that of whole batches.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.pipelining import PipelineStage, Schedule1F1B

from ...training.machine import configure_process
from .chaos_stage import ChaosStage, work_for
from .chaos_story import Writer
from .work import Work

__all__ = ["MICROBATCHES", "agent_arguments", "last_weights"]

#: Microbatches of a batch.
MICROBATCHES = 4
_KEPT = 2
#: A rank that is frozen or cut off is waited for: nobody restarts for that.
_TIMEOUT = timedelta(minutes=30)


def agent_arguments(settings: ChaosStage, host: str) -> list[str]:
    """Return the command of the agent of one stage, which starts the stage and starts it again."""
    words = ["--nnodes", settings.stages, "--nproc-per-node", 1, "--max-restarts", 1_000_000]
    words += ["--rdzv-backend", "c10d", "--rdzv-id", "chaos", "--rdzv-endpoint", settings.store]
    words += ["--rdzv-conf", "is_host=0", "--local-addr", host, "--monitor-interval", 0.1]
    program = ["-m", __name__, json.dumps(asdict(settings))]
    return [sys.executable, "-m", "torch.distributed.run", *map(str, words), *program]


def last_weights(folder: str | Path, stages: int) -> dict[str, Tensor] | None:
    """Return the weights of all stages at the last step that all have saved; None if there is none."""
    common = set.intersection(*(set(_saved(folder, stage)) for stage in range(stages)))
    if not common:
        return None
    weights: dict[str, Tensor] = {}
    for stage in range(stages):
        weights |= _loaded(folder, stage, max(common))["model"]
    return weights


@dataclass(frozen=True, slots=True)
class _Trained:
    """What a rank trains.

    Attributes:
        module: its part of the network.
        optimizers: of its weights.
    """

    module: nn.Module
    optimizers: Sequence[torch.optim.Optimizer]

    def save(self, folder: str | Path, stage: int, step: int) -> None:
        """Save both, and forget what is older than the last two."""
        path = _file(folder, stage, step)
        optimizers = [optimizer.state_dict() for optimizer in self.optimizers]
        torch.save({"model": self.module.state_dict(), "optimizers": optimizers}, path.with_suffix(".new"))
        path.with_suffix(".new").replace(path)
        for old in sorted(_saved(folder, stage))[:-_KEPT]:
            _file(folder, stage, old).unlink()

    def resume(self, folder: str | Path, stage: int) -> int:
        """Load the last snapshot that all ranks have; return its step, 0 if there is none."""
        found: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(found, _saved(folder, stage))
        common = set.intersection(*map(set, found))
        if not common:
            return 0
        state = _loaded(folder, stage, max(common))
        self.module.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        return max(common)


def _file(folder: str | Path, stage: int, step: int) -> Path:
    return Path(folder) / f"rank{stage}.{step}.pt"


def _saved(folder: str | Path, stage: int) -> list[int]:
    return [int(path.name.split(".")[1]) for path in Path(folder).glob(f"rank{stage}.*.pt")]


def _loaded(folder: str | Path, stage: int, step: int) -> dict[str, Any]:
    return torch.load(_file(folder, stage, step), weights_only=True)


def main(settings: ChaosStage) -> None:
    """Train until the end, or until somebody dies."""
    configure_process(1)
    dist.init_process_group("gloo", timeout=_TIMEOUT)
    stage, stages = dist.get_rank(), settings.stages
    settings = replace(settings, stage=stage)
    say = Writer(settings.folder, stage)
    say(came=time.time(), pid=os.getpid())
    work = work_for(settings)
    model, cuts = work.model(), work.cuts(stages)
    names = [name for name, _ in model.named_children()]
    ends = [0, *(names.index(cut) + 1 for cut in cuts), len(names)]
    own = names[ends[stage] : ends[stage + 1]]
    module = nn.Sequential(OrderedDict((name, model.get_submodule(name)) for name in own))
    made = work.optimizer(model)([*module.parameters()])
    trained = _Trained(module, [o for o in (made if isinstance(made, Sequence) else [made]) if o is not None])
    batch, schedule = work.batches(), _schedule(module, work, settings)
    first = trained.resume(settings.folder, stage)
    snapshot_steps = max(1, round(settings.snapshot_s / settings.period_s))
    due = time.perf_counter()
    for number in itertools.count(first):
        if number == settings.until:
            break
        if number == first:
            say(begins=number)
        x, y = batch(number)
        module.zero_grad()
        schedule.step(
            *((x,) if stage == 0 else ()), target=y if stage == stages - 1 else None, return_outputs=False
        )
        for optimizer in trained.optimizers:
            optimizer.step()
        say.now_and_then(steps=number - first + 1, number=number)
        if (number + 1) % snapshot_steps == 0:
            trained.save(settings.folder, stage, number + 1)
        due = max(due + settings.period_s, time.perf_counter())
        time.sleep(max(0.0, due - time.perf_counter()))
    dist.destroy_process_group()


def _schedule(module: nn.Module, work: Work, settings: ChaosStage) -> Any:
    given, hidden, output = work.example(settings.batch_size // MICROBATCHES)
    is_last = settings.stage == settings.stages - 1
    stage = PipelineStage(
        module,
        settings.stage,
        settings.stages,
        torch.device("cpu"),
        input_args=given if settings.stage == 0 else hidden.clone().requires_grad_(),
        output_args=output if is_last else hidden.clone().requires_grad_(),
    )
    return Schedule1F1B(stage, MICROBATCHES, work.criterion)


if __name__ == "__main__":
    main(ChaosStage(**json.loads(sys.argv[1])))
