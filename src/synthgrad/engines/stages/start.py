"""Joining the process group that torchrun has described in the environment."""

from __future__ import annotations

import os
from datetime import timedelta

import torch
import torch.distributed as dist

from ...core import ConfigError

__all__ = ["join"]

_NAMES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_LOCAL = ("127.0.0.1", "localhost", "::1")


def join(backend: str | None = None, timeout_s: float = 300.0) -> tuple[int, int]:
    """Join the group, and return rank and number of processes. Blocks until all have come.

    On one machine gloo is bound to the loopback device, so that nothing is open to a network. For several machines
    set ``MASTER_ADDR`` (torchrun does) and name the network device in ``GLOO_SOCKET_IFNAME``.

    Args:
        backend: ``"gloo"`` or ``"nccl"``; None for NCCL where there is an accelerator for each process, else gloo.
        timeout_s: for coming together, in seconds.

    Raises:
        ConfigError: if the environment does not say who and where this process is, or which device to use.
    """
    missing = [name for name in _NAMES if name not in os.environ]
    if missing:
        raise ConfigError(
            f"{', '.join(missing)} not set: start the program with torchrun --nproc-per-node N program.py"
        )
    local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if backend is None:
        backend = "nccl" if torch.cuda.is_available() and torch.cuda.device_count() >= local else "gloo"
    if backend not in ("gloo", "nccl"):
        raise ConfigError(f"backend={backend!r}: expected 'gloo' or 'nccl'")
    if backend == "gloo" and "GLOO_SOCKET_IFNAME" not in os.environ:
        if os.environ["MASTER_ADDR"] not in _LOCAL and local != int(os.environ["WORLD_SIZE"]):
            raise ConfigError(
                "processes on several machines: set GLOO_SOCKET_IFNAME to the network device that connects them, as "
                "in GLOO_SOCKET_IFNAME=eth0"
            )
        os.environ["GLOO_SOCKET_IFNAME"] = "lo" if os.path.isdir("/sys/class/net/lo") else "lo0"
    if backend == "nccl":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    dist.init_process_group(backend, timeout=timedelta(seconds=timeout_s))
    return dist.get_rank(), dist.get_world_size()
