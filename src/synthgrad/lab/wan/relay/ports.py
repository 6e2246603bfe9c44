"""Creates an unnamed network namespace for each worker, with a TAP device in it (Linux, root).

A named namespace stays behind if the program that made it is killed. The kernel removes unnamed ones, with their devices
and routes, as soon as no descriptor and no process holds them.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

__all__ = ["INTERFACE", "Port", "open_ports"]

INTERFACE = "wan0"
_OWN = "/proc/self/ns/net"

# linux/sched.h and linux/if_tun.h
_CLONE_NEWNET = 0x40000000
_TUNSETIFF = 0x400454CA
_TUNSETOFFLOAD = 0x400454D0
_IFF_TAP = 0x0002
_IFF_NO_PI = 0x1000
_IFF_VNET_HDR = 0x4000
_TUN_F_CSUM = 0x01
_TUN_F_TSO4 = 0x02


@dataclass(frozen=True)
class Port:
    """A worker's connection to the relay.

    Attributes:
        namespace: descriptor of the worker's network namespace.
        tap: descriptor of the relay's end of the worker's TAP device.
    """

    namespace: int
    tap: int


def open_ports(num: int, settings: Mapping[str, str]) -> list[Port]:
    """Open a port for each worker; the calling process returns to its own namespace.

    After an error the process may be in another namespace and holds open descriptors, so it must end.

    Args:
        num: number of workers.
        settings: kernel settings to write in each new namespace, by path below ``/proc/sys``; paths that this kernel
            does not have are skipped.

    Raises:
        OSError: if the kernel does not permit it.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    home = os.open(_OWN, os.O_RDONLY)
    ports = [_open_port(libc, settings) for _ in range(num)]
    _check(libc.setns(home, _CLONE_NEWNET), "return to the first network namespace")
    os.close(home)
    return ports


def _open_port(libc: ctypes.CDLL, settings: Mapping[str, str]) -> Port:
    _check(libc.unshare(_CLONE_NEWNET), "make a network namespace")
    for name, value in settings.items():
        path = Path("/proc/sys", name)  # refers to the namespace of the process that opens it
        if path.exists():
            try:
                path.write_text(value)
            except OSError as error:
                raise OSError(error.errno, f"cannot write {path}: {error.strerror}") from None
    tap = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    flags = _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR
    fcntl.ioctl(tap, _TUNSETIFF, struct.pack("16sH22x", INTERFACE.encode(), flags))
    fcntl.ioctl(tap, _TUNSETOFFLOAD, _TUN_F_CSUM | _TUN_F_TSO4)
    return Port(os.open(_OWN, os.O_RDONLY), tap)


def _check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"cannot {what}: {os.strerror(number)}")
