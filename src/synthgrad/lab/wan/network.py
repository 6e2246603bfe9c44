"""A network of workers with an emulated link between every two, as a context manager."""

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
_MAX_WORKERS = 16
_CONGESTION_CONTROL = Path("/proc/sys/net/ipv4/tcp_congestion_control")
_PROGRAMS = ("ip", "nsenter")
#: The hardware address of nobody.
_NOBODY = "02:00:00:00:ff:ff"
_BUFFER_BYTES = 128 << 20
_SETTINGS = {
    # IPv6 would add traffic that is not the workers'.
    "net/ipv6/conf/all/disable_ipv6": "1",
    "net/ipv6/conf/default/disable_ipv6": "1",
    # 1 Gbit/s × 200 ms is 25 MB. The kernel grants half the buffer as window, and the queue may hold as much again.
    # The machine's net.core.*mem_max bounds programs that set SO_RCVBUF or SO_SNDBUF themselves.
    "net/ipv4/tcp_rmem": f"4096 131072 {_BUFFER_BYTES}",
    "net/ipv4/tcp_wmem": f"4096 65536 {_BUFFER_BYTES}",
    # A connection must not start with the metrics of an earlier one.
    "net/ipv4/tcp_no_metrics_save": "1",
}


class Network:
    """Network namespaces of workers, connected by a relay. `emulated` creates it.

    Args:
        link: the link between every two workers.
        num_workers: number of workers, 2 to 16.

    Attributes:
        link: the link between every two workers.
        hosts: IPv4 address of each worker, by rank; valid inside this network only.
        interface: name of the network device in every namespace, for ``GLOO_SOCKET_IFNAME``.
        congestion_control: TCP congestion control of the machine, such as ``cubic`` or ``bbr``, which all namespaces use.
        relay_pid: process ID of the relay.

    Raises:
        ConfigError: if the number of workers is out of range, or this machine does not permit such a network.
    """

    def __init__(self, link: Link, num_workers: int) -> None:
        if not 2 <= num_workers <= _MAX_WORKERS:
            raise ConfigError(f"an emulated link between {num_workers} workers: expected 2 to {_MAX_WORKERS}")
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
            # Our own descriptors, so that the workers can be found and ended even if the relay is killed.
            for path in self._relay.namespaces:
                self._namespaces.append(os.open(path, os.O_RDONLY))
            for rank in range(num_workers):
                self._configure(rank)
        except BaseException:
            self.close()
            raise

    def command(self, rank: int, argv: Sequence[str]) -> list[str]:
        """Return the command that runs ``argv`` as worker ``rank``: with the same files and environment, in its network.

        The process that runs the command becomes ``argv`` and keeps its process ID. The command is valid on this machine
        while the context lasts.

        Raises:
            ConfigError: if there is no such rank.
            LinkError: if the context has ended.
        """
        if not 0 <= rank < len(self.hosts):
            raise ConfigError(f"rank {rank}: expected 0 to {len(self.hosts) - 1}")
        if not self._namespaces:
            raise LinkError("the emulated link is closed; start workers inside its context")
        return ["nsenter", f"--net=/proc/{os.getpid()}/fd/{self._namespaces[rank]}", "--", *argv]

    def cut(self, one: int, other: int) -> None:
        """Let nothing cross between two workers, either way, until `mend`. What was under way still arrives."""
        self._address(one, other, _NOBODY)

    def mend(self, one: int, other: int) -> None:
        """Let everything cross between two workers again."""
        self._address(one, other, None)

    def _address(self, one: int, other: int, lladdr: str | None) -> None:
        """Set the hardware address at which two workers reach each other; None for the true one."""
        for rank, peer in ((one, other), (other, one)):
            at = _lladdr(peer) if lladdr is None else lladdr
            words = [
                "ip",
                "neigh",
                "replace",
                self.hosts[peer],
                "lladdr",
                at,
                "dev",
                _INTERFACE,
                "nud",
                "permanent",
            ]
            done = subprocess.run(
                self.command(rank, words), capture_output=True, text=True, timeout=30, check=False
            )
            if done.returncode != 0:
                raise LinkError(
                    f"the link between workers {one} and {other} cannot be changed: {done.stderr.strip()}"
                )

    def counts(self) -> Counts:
        """Return the counts of the traffic so far, or, after the context, of all traffic.

        Raises:
            LinkError: if the relay was killed, which makes measurements invalid.
        """
        return self._relay.counts()

    def cpu_s(self) -> float:
        """Return the CPU time of the relay so far, in seconds: the cost of the emulation beside the workers' own."""
        return self.counts().cpu_s

    def close(self) -> None:
        """Kill all processes in the namespaces and remove the network. A second call does nothing."""
        try:
            self._relay.close()
        finally:
            namespaces, self._namespaces = self._namespaces, []
            stop_strays(namespaces)  # finds none, unless the relay was killed
            for namespace in namespaces:
                with suppress(OSError):
                    os.close(namespace)

    def _configure(self, rank: int) -> None:
        # The neighbours' addresses are set beforehand, so that no time is spent on ARP.
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
            reason = " ".join(done.stderr.split()) or f"exit status {done.returncode}"
            raise ConfigError(f"an emulated link is not permitted here: ip says '{reason}'; leave out --link")


@contextmanager
def emulated(link: Link, num_workers: int) -> Generator[Network]:
    """Create a network of workers with a link between every two, and remove it when the context ends.

    Processes that still run in the network are then killed. Nothing outside the network changes: the namespaces have no
    names, so networks cannot collide, and if this process is killed, the relay ends the workers and itself.

    Args:
        link: the link between every two workers.
        num_workers: number of workers, 2 to 16.

    Raises:
        ConfigError: if this machine does not permit it; `unavailable_reason` checks beforehand.
        LinkError: at the end, if the relay was killed in the meantime.
    """
    network = Network(link, num_workers)
    try:
        yield network
        network.counts()  # raises if the relay is gone, because measurements are then invalid
    finally:
        network.close()


def unavailable_reason() -> str | None:
    """Return why a link cannot be emulated here, or None if it can; this tries it, in about 0.1 seconds."""
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
    """Return the size of the bundles that TCP sends at once: 5 ms at the link's lower rate, from two segments to 64 KiB."""
    rates = [rate for rate in (link.bytes_per_s, link.down_bytes_per_s) if rate is not None]
    return min(65_536, max(3_000, round(min(rates) * 5e-3))) if rates else 65_536


def _lladdr(rank: int) -> str:
    return address_of(rank).hex(":")
