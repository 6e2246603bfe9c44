"""One unroll of a character model as a closure: written by hand, by the engine, and over a whole horizon."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..tasks import recurrent_network
from ..training.recurrent_methods import make_recurrent
from ..training.settings import BoundarySettings
from ..training.tasks.characters import per_sequence

__all__ = ["HAND_WRITTEN", "WHOLE", "UnrollSize", "make_unroll"]

HAND_WRITTEN = "hand_written"
WHOLE = "full_bptt"

_LR = 1e-3


@dataclass(frozen=True, slots=True, kw_only=True)
class UnrollSize:
    """The size of an unroll.

    Attributes:
        seed: seed of weights and tokens.
        width: units of the LSTM.
        batch_size: number of sequences.
        unroll: steps of an unroll, ``T``.
        horizon: steps of an episode, over which `WHOLE` runs backward at once; None where there are only unrolls.
        tokens: number of tokens, inputs and outputs of the network.
    """

    seed: int
    width: int
    batch_size: int
    unroll: int
    horizon: int | None = None
    tokens: int = 51

    @property
    def cell(self) -> dict[str, Any]:
        """The parameters of a line."""
        episode = {} if self.horizon is None else {"horizon": self.horizon}
        shape = {"width": self.width, "layers": 1, "batch_size": self.batch_size, "unroll": self.unroll}
        return {"arch": "lstm", **shape, **episode}


Made = tuple[Callable[[], object], list[Tensor]]


def make_unroll(method: str, size: UnrollSize, device: str) -> Made:
    """Return a closure that trains on the next unroll, and the tensors that live all the time.

    Args:
        method: `HAND_WRITTEN`, truncated BPTT of an ``nn.LSTM`` in PyTorch alone; `WHOLE`, which learns from a
            whole horizon in one backward pass; or one of ``RECURRENT_METHODS``.
        size: of the unroll.
        device: where.
    """
    torch.manual_seed(size.seed)
    length = size.horizon if method == WHOLE and size.horizon is not None else size.unroll
    generator = torch.Generator().manual_seed(size.seed)
    drawn = torch.randint(size.tokens, (size.batch_size, length + 1), generator=generator).to(device)
    x, y = drawn[:, :-1].contiguous(), drawn[:, 1:].contiguous()
    if method in (HAND_WRITTEN, WHOLE):
        return _by_hand(size, x, y, device)
    net = recurrent_network("lstm", size.tokens, size.tokens, size.width).to(device)
    trainer = make_recurrent(
        method,
        BoundarySettings(),
        net,
        per_sequence,
        batch_size=size.batch_size,
        width=size.width,
        lr=_LR,
    )
    tensors = [*net.parameters(), *trainer.boundary.parameters(), *trainer.boundary.buffers(), x, y]
    return lambda: trainer.step(x, y), tensors


def _by_hand(size: UnrollSize, x: Tensor, y: Tensor, device: str) -> Made:
    """What a user of PyTorch writes: detach the state, run, backward, step."""
    lstm = nn.LSTM(size.tokens, size.width, batch_first=True).to(device)
    head = nn.Linear(size.width, size.tokens).to(device)
    parameters = [*lstm.parameters(), *head.parameters()]
    optimizer = torch.optim.Adam(parameters, _LR, fused=True)
    zero = torch.zeros(1, size.batch_size, size.width, device=device)
    state = [zero, zero.clone()]

    def step() -> None:
        inputs = torch.zeros(*x.shape, size.tokens, device=device).scatter_(2, x.unsqueeze(2), 1.0)
        features, (h, c) = lstm(inputs, (state[0], state[1]))
        loss = F.cross_entropy(head(features).flatten(0, 1), y.flatten(), reduction="sum") / len(y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        state[:] = h.detach(), c.detach()

    return step, [*parameters, x, y]
