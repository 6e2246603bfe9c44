"""A stretch of a run as one of several stages in memory: from the start or a saved state to some step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from synthgrad.core import Decoupled
from synthgrad.engines import Stages
from tests.engines.stages import programs

__all__ = ["State", "stretch"]

#: Of each rank: its weights, the state of its engine, and that of its random numbers.
State = Sequence[tuple[dict[str, Tensor], dict[str, Any], Tensor]]


def stretch(
    transport: Any,
    net: Decoupled,
    optimizer: Any,
    data: Sequence[tuple[Tensor, Tensor]],
    state: State | None = None,
    **given: Any,
) -> tuple[dict[str, Tensor], tuple[dict[str, Tensor], dict[str, Any], Tensor]]:
    """Train on what is left of some batches; return all weights, gathered, and what this rank has to be resumed from."""
    how: dict[str, Any] = {"deterministic": True, "transport": transport, **given}
    with Stages(net, programs.per_example, optimizer, **how) as stages:
        done = 0
        torch.manual_seed(5 + transport.rank)
        if state is not None:
            weights, engine, random = state[transport.rank]
            net.load_state_dict(weights)
            stages.load_state_dict(engine)
            torch.set_rng_state(random)
            done = engine["step"]
        for x, y in data[done:]:
            stages.step(x if transport.rank == 0 else None, y)
        saved = stages.state_dict()
        kept = {name: value.clone() for name, value in net.state_dict().items()}
        random = torch.get_rng_state()
        stages.gather()
    return {name: value.clone() for name, value in net.state_dict().items()}, (kept, saved, random)
