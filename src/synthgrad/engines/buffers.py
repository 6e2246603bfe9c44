"""Puts back what a forward pass has spoilt: running statistics of a batch that was not finite."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

import torch
from torch import nn

from ..core.instruments import Instruments
from ..core.quality import is_finite

__all__ = ["sparing_buffers"]


@contextmanager
def sparing_buffers(model: nn.Module, instruments: Instruments) -> Generator[None]:
    """Run a step; at its end put buffers back as they were that are not finite any more, if the guard has skipped something.

    Does nothing where the guard stops: the run is over then.
    """
    guard = instruments.guard
    if guard is None or not guard.skip:
        yield
        return
    kept = [(b, b.detach().clone()) for b in model.buffers() if b.is_floating_point()]
    before = guard.skipped.total()
    try:
        yield
    finally:
        if guard.skipped.total() > before:
            with torch.no_grad():
                for b, was in kept:
                    if not is_finite(b) and is_finite(was):
                        b.copy_(was)
