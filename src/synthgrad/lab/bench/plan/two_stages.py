"""A process of two: it builds decoupled stages with a cut that it is told, and times their steps."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ....core import decouple
from ....engines.stages import Stages, join
from ...training.machine import configure_process
from ..workers import serve
from .models import MODELS, local_loss

__all__: list[str] = []

_LR = 3e-4


class _Worker:
    def __init__(self, network: str, timeout_s: float) -> None:
        self._network = network
        self._timeout_s = timeout_s
        self._built: dict[str, tuple[Stages, Any, Tensor]] = {}

    def build(self, cut: str) -> dict[str, Any]:
        """Make the stages with a cut; all processes have the same weights."""
        torch.manual_seed(0)
        model, x, y, criterion = MODELS[self._network]()
        net = decouple(model, [cut], local_loss(self._network), x)
        stages = Stages(
            net, criterion, partial(torch.optim.Adam, lr=_LR, fused=True), timeout_s=self._timeout_s
        )
        self._built[cut] = stages, (x if dist.get_rank() == 0 else None), y
        return {}

    def run(self, cut: str, warm: int, steps: int) -> dict[str, Any]:
        """Run some steps without and some with a clock; return the seconds of a step."""
        stages, x, y = self._built[cut]
        for _ in range(warm):
            stages.step(x, y)
        start = time.perf_counter()
        for _ in range(steps):
            stages.step(x, y)
        return {"step_s": (time.perf_counter() - start) / steps}


def _set_up(settings: dict[str, Any]) -> Mapping[str, Callable[..., dict[str, Any]]]:
    configure_process(settings["threads"])
    join("gloo", timeout_s=settings["timeout_s"])
    worker = _Worker(settings["network"], settings["timeout_s"])
    return {"build": worker.build, "run": worker.run}


if __name__ == "__main__":
    serve(_set_up)
