"""A batch whose module waits for the answer: to learn from it, to be corrected by it, or to answer in its turn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from ...core import Message
from ...core.in_flight import Batch, InFlight
from ..replay import ForwardReplay

__all__ = ["PendingBatch", "holds_answers"]


class _Stage(Protocol):
    """What a batch asks of its stage."""

    def backward(self, step: int, out: Tensor, delta: Tensor | None, penalty: Tensor | None) -> None: ...

    def answer(
        self, batch: Batch, leaf: Tensor | None, values: Tensor | None, output_error: Tensor | None = None
    ) -> None: ...


def holds_answers(flight: InFlight) -> bool:
    """Return whether a batch waits for its answer before it is answered itself."""
    return isinstance(flight.release, PendingBatch) and not flight.release.has_sent


@dataclass(slots=True, eq=False)
class PendingBatch:
    """A batch that may wait for its answer.

    The callback that an `InFlight` calls when the answer has arrived.

    Attributes:
        stage: the stage.
        batch: the batch.
        out: the output of the module, with its graph.
        h: the input of the module, detached; None in the first stage.
        leaf: the same tensor, if its gradient is to be sent; otherwise None.
        penalty: the penalty of the module, with its graph.
        replay: the conditions of the forward pass, if stages wait over steps.
        has_sent: whether the batch has been answered ahead of what the module will learn from.
    """

    stage: _Stage
    batch: Batch
    out: Tensor
    h: Tensor | None
    leaf: Tensor | None
    penalty: Tensor | None
    replay: ForwardReplay | None
    has_sent: bool = False

    def __call__(self, gradient: Tensor | None, message: Message) -> None:
        if gradient is not None:
            self.stage.backward(self.batch.entered, self.out, gradient, self.penalty)
        if not self.has_sent:
            self.stage.answer(self.batch, self.leaf, message.loss, message.output_error)

    def pulled_back(
        self, gradient: Tensor, own: Sequence[Tensor], *, keeps: bool = False
    ) -> list[Tensor | None]:
        """Return the gradients of the module's parameters for another gradient of its output, and add that of its input."""
        learn = [p for p in own if p.requires_grad]
        leaves = [] if self.leaf is None else [self.leaf]
        found = torch.autograd.grad(
            [self.out], [*learn, *leaves], [gradient], retain_graph=keeps, allow_unused=True
        )
        if self.leaf is not None and found[-1] is not None:
            self.leaf.grad = found[-1] if self.leaf.grad is None else self.leaf.grad + found[-1]
        by_id = {id(p): g for p, g in zip(learn, found, strict=False)}
        return [by_id.get(id(p)) for p in own]

    def state_dict(self) -> dict[str, Any]:
        """Return the batch as plain containers of tensors."""
        assert self.replay is not None
        h = None if self.h is None else self.h.detach()
        part = None if self.leaf is None or self.leaf.grad is None else self.leaf.grad.clone()
        return {
            "held": self.replay.state_dict(),
            "h": h,
            "wanted": self.leaf is not None,
            "part": part,
            "has_sent": self.has_sent,
        }
