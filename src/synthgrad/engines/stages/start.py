"""Joins the process group that torchrun has described in the environment."""

from __future__ import annotations

import errno
import os
import socket
from datetime import timedelta

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore, TCPStore

from ...core import ConfigError

__all__ = ["join"]

_NAMES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_LOCAL = ("127.0.0.1", "localhost", "::1")


def join(backend: str | None = None, timeout_s: float = 300.0) -> tuple[int, int]:
    """Join the process group, and return rank and number of processes. Blocks until all have come.

    On one machine everything is bound to the loopback device. For several machines set ``MASTER_ADDR``
    (torchrun does) and name the network device in ``GLOO_SOCKET_IFNAME``; the store then listens at the
    master's address, and gloo at that of the device. The guide says what is not encrypted or protected there.
    The store of ``torchrun`` is torchrun's, and listens at all addresses.

    Args:
        backend: ``"gloo"`` or ``"nccl"``; None for NCCL if there is an accelerator for each process,
            otherwise gloo.
        timeout_s: how long to wait for all processes, in seconds.

    Raises:
        ConfigError: if the environment does not describe this process, or does not say which device to use;
            or if the port is taken.
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
    timeout, store = timedelta(seconds=timeout_s), _own_store(timeout_s)
    if store is None:
        dist.init_process_group(backend, timeout=timeout)
    else:
        rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        # PyTorch uses this prefix when it creates the store itself, which it may do in some of the ranks.
        prefixed = PrefixStore("default_pg", store)
        dist.init_process_group(backend, timeout=timeout, store=prefixed, rank=rank, world_size=world_size)
    return dist.get_rank(), dist.get_world_size()


def _own_store(timeout_s: float) -> TCPStore | None:
    """Return a store that listens at the master's address only.

    Returns None if that is impossible, or if torchrun has a store of its own.
    """
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        return None
    name, port, rank = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), int(os.environ["RANK"])
    try:
        # IPv4 comes first, since gloo's device on the loopback uses it.
        found = sorted(
            socket.getaddrinfo(name, port, type=socket.SOCK_STREAM), key=lambda a: a[0] != socket.AF_INET
        )
    except OSError:
        return None
    family, host = found[0][0], str(found[0][4][0])
    local = os.environ.get("LOCAL_WORLD_SIZE") == os.environ["WORLD_SIZE"]
    if name not in _LOCAL and host.startswith("127.") and not local:
        return None  # the name of this machine, for which other machines have another address
    listener: int | None = None
    if rank == 0:
        try:
            listener = socket.create_server((host, port), family=family, backlog=1024).detach()
        except OSError as error:
            if error.errno == errno.EADDRNOTAVAIL:
                return None  # the address is translated by the network, so this machine does not have it
            raise ConfigError(
                f"MASTER_PORT={port} of {host}: {error.strerror}; choose another one"
            ) from error
    return TCPStore(
        host,
        port,
        int(os.environ["WORLD_SIZE"]),
        is_master=rank == 0,
        timeout=timedelta(seconds=timeout_s),
        master_listen_fd=listener,
    )
