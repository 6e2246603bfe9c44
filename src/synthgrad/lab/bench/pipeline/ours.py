"""Stages that wait for no gradient, as the benchmark measures them."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ....core import decouple
from ....engines.stages import Stages
from ...training.snapshot_file import Fingerprint, write_snapshot
from .cases import CORRECTED_LATE, LOW_RANK_ROWS, RANK, Case
from .division import division
from .network import Workload, optimizers_of
from .slow import Slowdown
from .wires import codec_of

__all__ = ["RULES", "DecoupledStages"]

#: The rules at the ends of stages, in words. A linear classifier costs next to nothing and needs no message.
RULES = {
    "cdni": "cdni, linear M",
    "low_rank": f"cdni, means of classes, M of rank {RANK}, {LOW_RANK_ROWS:.0%} of the rows",
    "local_loss": "local loss",
    "late_correction": f"local loss, corrected {CORRECTED_LATE} steps late",
    "interlocked": "loss of the stage above, one update late",
    "delayed": "true gradient, one update late",
}


class DecoupledStages:
    """One stage in each process; at its end cDNI with a linear ``M``, or a local loss. The window follows the link.

    With late gradients a step is an update of the microbatches, each of which is a step of the stages.

    What is sent is counted, headers included. How long a snapshot takes is measured once, between two blocks of steps.
    """

    def __init__(self, case: Case, work: Workload, lr: float, timeout_s: float) -> None:
        assert case.observe_prob is not None
        model, size = work.model(), work.size
        rule, reduction = work.rule(case.rule)
        self._cuts = [names[-1] for names in division(work, model, size.stages, rule)[:-1]]
        with work.arithmetic():
            net = decouple(model, self._cuts, rule, torch.zeros_like(work.example(2)), reduction=reduction)  # pyright: ignore[reportArgumentType]
        self._stages = Stages(
            net,
            work.criterion(),
            optimizers_of(size, net, lr, late=case.microbatches is not None),
            window=case.window(size.stages),
            accumulate=case.microbatches or 1,
            observe_prob=case.observe_prob,
            observe_rows=case.observe_rows,
            codec=codec_of(case.wire_dtype),
            timeout_s=timeout_s,
            seed=size.seed,
        )
        self._arithmetic = work.arithmetic
        self._parts = case.microbatches or 1
        rank = dist.get_rank()
        self._slowdown = Slowdown(self._stages.module, size.slow[rank] if size.slow else 1.0)
        self.rows = slice(None)
        self.threads = size.threads
        self.reads_input = dist.get_rank() == 0
        self._net = net
        self._snapshot_s: float | None = None

    def step(self, x: Tensor | None, y: Tensor) -> Tensor | None:
        losses = [
            self._step(part, target)
            for part, target in zip(self._split(x), y.chunk(self._parts), strict=True)
        ]
        known = [loss for loss in losses if isinstance(loss, Tensor)]
        return torch.stack(known).mean() if known else None

    def _split(self, x: Tensor | None) -> Sequence[Tensor | None]:
        return [None] * self._parts if x is None else x.chunk(self._parts)

    def _step(self, x: Tensor | None, y: Tensor) -> object:
        before = self._stages.busy_s
        with self._arithmetic():
            loss = self._stages.step(x, y).loss
        self._slowdown.record(self._stages.busy_s - before)
        return loss

    def predict(self, x: Tensor) -> Tensor | None:
        return self._stages.predict(x if self.reads_input else None)

    def facts(self) -> dict[str, Any]:
        stages = self._stages
        if self._snapshot_s is None:
            self._snapshot_s = self._save()
        return {
            "sent_bytes": stages.sent_bytes,
            "sent_up_bytes": stages.sent_up_bytes,
            "sent_down_bytes": stages.sent_down_bytes,
            "waited_s": stages.waited_s,
            "busy_s": stages.busy_s,
            "window": stages.window,
            "round_trip_s": stages.round_trip_s,
            "snapshot_s": self._snapshot_s,
            "cuts": ", ".join(self._cuts),
        }

    def _save(self) -> float:
        """Save all that a resumed run needs, messages under way included, to a file; return the seconds it takes. Once."""
        start = time.perf_counter()
        state = {"net": self._net.state_dict(), "trainer": self._stages.state_dict()}
        with tempfile.TemporaryDirectory() as folder:
            owner = Fingerprint({"benchmark": "pipeline"}, None, Fingerprint.tensor_forms(self._net))
            write_snapshot(Path(folder) / "stage", owner, {}, state)
            return time.perf_counter() - start

    def close(self) -> None:
        self._stages.close()
