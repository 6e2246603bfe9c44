"""One unroll of a character model as a closure: written by hand, by the engine, and over a whole horizon."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..training.tasks.characters import per_sequence
from ..training.recurrent_methods import make_recurrent
from ..training.settings import BoundarySettings
from ..tasks import recurrent_network

__all__ = ["HAND_WRITTEN", "WHOLE", "UnrollSize", "make_unroll"]

HAND_WRITTEN = "hand_written"
WHOLE = "full_bptt"

_LR = 1e-3


@dataclass(frozen=True, slots=True)
class UnrollSize:
    """The size of an unroll.

    Attributes:
        width: units of the LSTM.
        unroll: ``T``.
        horizon: steps of an episode, over which `WHOLE` runs backward at once.
        batch_size: sequences.
        tokens: inputs and outputs.
    """

    width: int
    unroll: int
    horizon: int
    batch_size: int
    tokens: int = 51


Made = tuple[Callable[[], object], list[Tensor]]


def make_unroll(method: str, size: UnrollSize, seed: int, device: str) -> Made:
    """Return a closure that trains on the next unroll, and the tensors that live all the time.

    Args:
        method: `HAND_WRITTEN`, truncated BPTT of an ``nn.LSTM`` in PyTorch alone; `WHOLE`, which learns from a
            whole horizon in one backward pass; or one of ``RECURRENT_METHODS``.
        size: of the unroll.
        seed: of weights and tokens.
        device: where.
    """
    torch.manual_seed(seed)
    length = size.horizon if method == WHOLE else size.unroll
    generator = torch.Generator().manual_seed(seed)
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
