"""A network of workers with a wide-area link between every two, for as long as a context lasts."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from ...core import ConfigError
from .link import Link, LinkError
from .process import Counts, RelayProcess
from .relay.frames import address_of
from .relay.strays import stop_strays

__all__ = ["Network", "emulated", "unavailable_reason"]

_INTERFACE = "wan0"
_MOST_WORKERS = 16
_CONGESTION_CONTROL = Path("/proc/sys/net/ipv4/tcp_congestion_control")
_PROGRAMS = ("ip", "nsenter")
_BUFFER_BYTES = 128 << 20
_SETTINGS = {
    # No traffic but the workers'.
    "net/ipv6/conf/all/disable_ipv6": "1",
    "net/ipv6/conf/default/disable_ipv6": "1",
    # 1 Gbit/s × 200 ms is 25 MB; the kernel grants half the buffer as window, and the queue may hold as much again.
    # Programs that set SO_RCVBUF or SO_SNDBUF themselves are bounded by net.core.*mem_max, the machine's own.
    "net/ipv4/tcp_rmem": f"4096 131072 {_BUFFER_BYTES}",
    "net/ipv4/tcp_wmem": f"4096 65536 {_BUFFER_BYTES}",
    # No connection begins with what an earlier one has learned.
    "net/ipv4/tcp_no_metrics_save": "1",
}


class Network:
    """Network namespaces of workers, each with one device whose far end a relay holds. Made by `emulated`.

    Args:
        link: what lies between every two workers.
        num_workers: how many, 2 to 16.

    Attributes:
        link: as given.
        hosts: IPv4 address of each worker, by rank; known inside this network only.
        interface: name of the device in every namespace, for ``GLOO_SOCKET_IFNAME``.
        congestion_control: of TCP, the machine's own (``cubic``, ``bbr``): a namespace may choose among few others.
        relay_pid: the process that carries the frames.

    Raises:
        ConfigError: if the number is out of range, or this machine does not permit it: the reason is said.
    """

    def __init__(self, link: Link, num_workers: int) -> None:
        if not 2 <= num_workers <= _MOST_WORKERS:
            raise ConfigError(f"a link between {num_workers} workers: expected 2 to {_MOST_WORKERS}")
        if (missing := _missing()) is not None:
            raise ConfigError(
                f"an emulated link needs Linux, root, /dev/net/tun and the programs ip and nsenter, but {missing}; "
                "provide it, or leave out --link"
            )
        self.link = link
        self.interface = _INTERFACE
        self.congestion_control = _CONGESTION_CONTROL.read_text().strip()
        self.hosts = tuple(f"10.77.0.{rank + 1}" for rank in range(num_workers))
        self._namespaces: list[int] = []
        self._relay = RelayProcess(link, num_workers, _SETTINGS)
        self.relay_pid = self._relay.pid
        try:
            # Descriptors of our own: the workers can be found and ended after the relay was killed.
            for path in self._relay.namespaces:
                self._namespaces.append(os.open(path, os.O_RDONLY))
            for rank in range(num_workers):
                self._configure(rank)
        except BaseException:
            self.close()
            raise

    def command(self, rank: int, argv: Sequence[str]) -> list[str]:
        """Return the command that runs ``argv`` as worker ``rank``: same files, same environment, other network.

        The command becomes ``argv`` itself, with the same process number. It is for this machine and the life of the
        context.
        """
        if not 0 <= rank < len(self.hosts):
            raise ConfigError(f"rank {rank}: expected 0 to {len(self.hosts) - 1}")
        if not self._namespaces:
            raise LinkError("the emulated link is down; start workers inside its context")
        return ["nsenter", f"--net=/proc/{os.getpid()}/fd/{self._namespaces[rank]}", "--", *argv]

    def counts(self) -> Counts:
        """Return what passed so far; after the context, what passed in all.

        Raises:
            LinkError: if the relay was killed: what was measured is void.
        """
        return self._relay.counts()

    def cpu_s(self) -> float:
        """Return the CPU time of the relay so far, in seconds: the emulation's cost, which is no worker's."""
        return self.counts().cpu_s

    def close(self) -> None:
        """Kill what still runs in the namespaces and take everything down. Again does nothing."""
        try:
            self._relay.close()
        finally:
            namespaces, self._namespaces = self._namespaces, []
            stop_strays(namespaces)  # nothing to do, unless the relay was killed
            for namespace in namespaces:
                with suppress(OSError):
                    os.close(namespace)

    def _configure(self, rank: int) -> None:
        # Neighbours are known from the start: no time goes by for ARP.
        neighbours = [
            f"neigh replace {host} lladdr {_lladdr(other)} dev {_INTERFACE} nud permanent"
            for other, host in enumerate(self.hosts)
            if other != rank
        ]
        lines = [
            "link set lo up",
            f"link set {_INTERFACE} address {_lladdr(rank)} mtu 1500 txqueuelen 10000",
            f"link set {_INTERFACE} gso_max_size {_bundle_bytes(self.link)}",
            f"link set {_INTERFACE} up",
            f"addr add {self.hosts[rank]}/24 dev {_INTERFACE}",
            *neighbours,
        ]
        done = subprocess.run(
            self.command(rank, ["ip", "-batch", "-"]),
            input="\n".join(lines) + "\n",
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        if done.returncode != 0:
            said = " ".join(done.stderr.split()) or f"exit status {done.returncode}"
            raise ConfigError(f"an emulated link is not permitted here: ip says '{said}'; leave out --link")


@contextmanager
def emulated(link: Link, num_workers: int) -> Generator[Network]:
    """Give a network of ``num_workers`` with ``link`` between every two, and take it down at the end, however it ends.

    What still runs in it then is killed. Nothing outside changes: the namespaces have no names, so that two networks
    never meet, and when this process is killed the relay ends the workers and itself.

    Raises:
        ConfigError: if this machine does not permit it; `unavailable_reason` tells beforehand.
        LinkError: at the end, if the relay was killed while the context lasted.
    """
    network = Network(link, num_workers)
    try:
        yield network
        network.counts()  # raises if the relay is gone: what was measured is void
    finally:
        network.close()


def unavailable_reason() -> str | None:
    """Return why no link can be emulated here, None if it can; tries it, which takes a tenth of a second."""
    try:
        with emulated(Link(), 2):
            return None
    except (ConfigError, LinkError) as error:
        return str(error)


def _missing() -> str | None:
    if sys.platform != "linux":
        return f"this is {sys.platform}"
    if os.geteuid() != 0:
        return f"this is user {os.geteuid()}, not root"
    if not Path("/dev/net/tun").exists():
        return "there is no /dev/net/tun"
    absent = [name for name in _PROGRAMS if shutil.which(name) is None]
    return f"'{absent[0]}' is not on the path" if absent else None


def _bundle_bytes(link: Link) -> int:
    """Return how many bytes of a stream TCP may hand over at once: 5 ms at the link's rate, two segments to 64 KiB."""
    if link.bytes_per_s is None:
        return 65_536
    return min(65_536, max(3_000, round(link.bytes_per_s * 5e-3)))


def _lladdr(rank: int) -> str:
    return address_of(rank).hex(":")
