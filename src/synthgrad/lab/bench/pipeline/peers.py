"""The methods that stages are compared with, each as PyTorch offers it, set up to be as fast as it can be.

All of them compute the gradient of a batch before they go on. With microbatches BatchNorm normalises each on its own,
and data parallel processes each their part: on the same data the losses of methods differ a little.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.pipelining import (
    PipelineStage,
    Schedule1F1B,
    ScheduleGPipe,
    ScheduleInterleavedZeroBubble,
    ScheduleZBVZeroBubble,
)
from torch.nn.parallel import DistributedDataParallel

from ....core.modes import evaluating
from .cases import Case
from .division import division
from .network import Size, Workload, optimizers_of
from .program import forward_through
from .wires import Wired, codec_of, on_wire

__all__ = ["OneProcess", "DataParallel", "PipelineSchedule", "owners_of"]

_FLOAT_BYTES = 4


class Together:
    """The optimizers of some parameters of a network, in the loop that everybody writes."""

    def __init__(self, size: Size, net: nn.Module, parameters: Iterable[nn.Parameter], lr: float) -> None:
        made = optimizers_of(size, net, lr)([*parameters])
        listed = made if isinstance(made, Sequence) else [made]
        self._optimizers = [optimizer for optimizer in listed if optimizer is not None]

    def zero_grad(self) -> None:
        for optimizer in self._optimizers:
            optimizer.zero_grad()

    def step(self) -> None:
        for optimizer in self._optimizers:
            optimizer.step()


class OneProcess:
    """Backpropagation in one process, in the loop that everybody writes; gradients of microbatches add up.

    Where every process has one, they have nothing to do with each other.
    """

    reads_input = True

    def __init__(self, work: Workload, lr: float, *, threads: int, microbatches: int = 1) -> None:
        self.rows = slice(None)
        self.threads = threads
        self._model = work.model()
        self._optimizer = Together(work.size, self._model, self._model.parameters(), lr)
        self._criterion = work.criterion()
        self._arithmetic = work.arithmetic
        self._microbatches = microbatches

    def step(self, x: Tensor | None, y: Tensor) -> Tensor | None:
        assert x is not None
        count = self._microbatches
        self._optimizer.zero_grad()
        losses: list[Tensor] = []
        with self._arithmetic():
            for part, target in zip(x.chunk(count), y.chunk(count), strict=True):
                loss = self._criterion(self._model(part), target)
                (loss / count if count > 1 else loss).backward()
                losses.append(loss.detach())
        self._optimizer.step()
        return torch.stack(losses).mean() if count > 1 else losses[0]

    def predict(self, x: Tensor) -> Tensor | None:
        return _evaluated(self._model, x)

    def facts(self) -> dict[str, Any]:
        return {"sent_bytes": 0}

    def close(self) -> None:
        pass


class DataParallel:
    """The whole network in every process, each with its part of the batch; gradients are averaged (all-reduce).

    Statistics of BatchNorm are those of the first process and are not sent around at every step, which would cost a
    round trip more. What is sent is what a ring needs, 2 (K − 1) / K of the parameters' bytes from every process.
    """

    reads_input = True

    def __init__(self, work: Workload, lr: float) -> None:
        size = work.size
        share = size.batch_size // size.stages
        self._rank = dist.get_rank()
        self.rows = slice(self._rank * share, (self._rank + 1) * share)
        self.threads = size.threads
        model = work.model()
        self._model = DistributedDataParallel(model, broadcast_buffers=False, gradient_as_bucket_view=True)
        self._optimizer = Together(size, model, self._model.parameters(), lr)
        self._criterion = work.criterion()
        self._arithmetic = work.arithmetic
        num_bytes = _FLOAT_BYTES * sum(p.numel() for p in model.parameters())
        self._bytes_per_step = 2 * (size.stages - 1) * num_bytes // size.stages
        self._steps = 0

    def step(self, x: Tensor | None, y: Tensor) -> Tensor | None:
        self._optimizer.zero_grad()
        with self._arithmetic():
            loss = self._criterion(self._model(x), y)
            loss.backward()
        self._optimizer.step()
        self._steps += 1
        return loss.detach() if self._rank == 0 else None

    def predict(self, x: Tensor) -> Tensor | None:
        return _evaluated(self._model.module, x) if self._rank == 0 else None

    def facts(self) -> dict[str, Any]:
        return {"sent_bytes": self._steps * self._bytes_per_step}

    def close(self) -> None:
        pass


def owners_of(case: Case, stages: int) -> list[int]:
    """Return the rank of each part of the network.

    >>> owners_of(Case("zero_bubble", 4, "zbv"), 2)
    [0, 1, 1, 0]
    """
    ranks = list(range(stages))
    if case.chunks_per_stage == 1:
        return ranks
    return [*ranks, *(reversed(ranks) if case.variant == "zbv" else ranks)]


class PipelineSchedule:
    """A schedule of ``torch.distributed.pipelining``.

    What is sent is the activation of every example at each boundary between processes, and its gradient back; by a codec, if
    the case has one, around the modules.
    """

    def __init__(self, case: Case, work: Workload, lr: float) -> None:
        assert case.microbatches is not None
        rank, size, codec = dist.get_rank(), work.size, codec_of(case.wire_dtype)
        self._owners = owners_of(case, size.stages)
        count = len(self._owners)
        model = work.model()
        layers = dict(model.named_children())
        self._modules: dict[int, nn.Module] = {
            k: nn.Sequential(*(layers[name] for name in names))
            for k, names in enumerate(division(work, model, count))
            if self._owners[k] == rank
        }
        rows = size.batch_size // case.microbatches
        ends = [work.at_end(k, count, rows) for k in range(count)]
        self._at_end = [work.at_end(k, count, 1) for k in range(count)]
        crosses = [*(on_wire(codec, end) for end in ends[:-1]), ends[-1]]
        stages = [
            PipelineStage(
                module
                if codec is None
                else Wired(module, codec, ends[k - 1].shape if k else None, encodes=k + 1 < count),
                k,
                count,
                torch.device("cpu"),
                # Shapes are given, so that no time goes by for finding them out.
                input_args=crosses[k - 1].clone().requires_grad_() if k else work.example(rows),
                output_args=crosses[k].clone().requires_grad_(),
            )
            for k, module in self._modules.items()
        ]
        self._schedule: Any = _schedule(case, stages, work.criterion())
        parameters = [p for m in self._modules.values() for p in m.parameters()]
        self._optimizer = Together(size, model, parameters, lr)
        self._arithmetic = work.arithmetic
        self.rows = slice(None)
        self.threads = size.threads
        self.reads_input = self._owners[0] == rank
        self._has_output = self._owners[-1] == rank
        between = list(zip(self._owners, self._owners[1:], strict=False))
        up, down = (
            sum(
                crosses[k].numel()
                for k, pair in enumerate(between)
                if pair[0] != pair[1] and rank == pair[end]
            )
            for end in (0, 1)
        )
        self._up_bytes_per_step = up * case.microbatches * _FLOAT_BYTES
        self._down_bytes_per_step = down * case.microbatches * _FLOAT_BYTES
        self._steps = 0

    def step(self, x: Tensor | None, y: Tensor) -> Tensor | None:
        self._optimizer.zero_grad()
        losses: list[Tensor] = []
        with self._arithmetic():
            self._schedule.step(
                *((x,) if self.reads_input else ()),
                target=y if self._has_output else None,
                losses=losses if self._has_output else None,
                return_outputs=False,
            )
        self._optimizer.step()
        self._steps += 1
        return torch.stack([loss.detach() for loss in losses]).mean() if losses else None

    def predict(self, x: Tensor) -> Tensor | None:
        return forward_through(x, self._modules, self._owners, self._at_end)

    def facts(self) -> dict[str, Any]:
        up, down = self._steps * self._up_bytes_per_step, self._steps * self._down_bytes_per_step
        return {"sent_bytes": up + down, "sent_up_bytes": up, "sent_down_bytes": down}

    def close(self) -> None:
        pass


def _schedule(case: Case, stages: list[PipelineStage], criterion: Any) -> Any:
    count = case.microbatches
    assert count is not None
    if case.schedule == "gpipe":
        return ScheduleGPipe(stages[0], count, criterion)
    if case.schedule == "1f1b":
        return Schedule1F1B(stages[0], count, criterion)
    made = {"interleaved": ScheduleInterleavedZeroBubble, "zbv": ScheduleZBVZeroBubble}[case.variant or ""]
    return made([*stages], count, criterion)


@torch.no_grad()
def _evaluated(model: nn.Module, x: Tensor) -> Tensor:
    with evaluating(model):
        return model(x)
