"""Chooses the transport for the process group that this process has joined."""

from __future__ import annotations

import torch.distributed as dist

from ....core import ConfigError
from .base import Transport
from .gloo import GlooTransport
from .nccl import NcclTransport

__all__ = ["distributed"]


def distributed() -> Transport:
    """Return the transport over ``torch.distributed``, by the backend of the process group. Does not block.

    Raises:
        ConfigError: if this process has not joined a group.
    """
    if not dist.is_initialized():
        raise ConfigError(
            "no process group: start the program with torchrun, and call synthgrad.engines.stages.join() first; or "
            "give a transport, as in transport=…"
        )
    return NcclTransport() if dist.get_backend() == "nccl" else GlooTransport()
