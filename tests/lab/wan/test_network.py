"""Real namespaces: round trip, rate, who reaches whom, and that nothing remains however the context ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from synthgrad.core import ConfigError
from synthgrad.lab.wan import Link, LinkError, Network, emulated, unavailable_reason
from synthgrad.lab.wan.process import RelayProcess

_PORT = 5000

_ECHO = """
import socket, sys
with socket.create_server((sys.argv[1], 5000)) as server:
    print("ready", flush=True)
    with server.accept()[0] as peer:
        while data := peer.recv(100):
            peer.sendall(data)
"""
_TRIPS = """
import json, socket, sys, time
times = []
with socket.create_connection((sys.argv[1], 5000), 20) as peer:
    for _ in range(5):
        start = time.monotonic()
        peer.sendall(b"x")
        peer.recv(1)
        times.append(time.monotonic() - start)
print(json.dumps(times))
"""
_SINK = """
import socket, sys, time
with socket.create_server((sys.argv[1], 5000)) as server:
    print("ready", flush=True)
    with server.accept()[0] as peer:
        start, size = time.monotonic(), 0
        while data := peer.recv(100_000):
            size += len(data)
        print(size, time.monotonic() - start)
"""
_SOURCE = """
import socket, sys
with socket.create_connection((sys.argv[1], 5000), 20) as peer:
    peer.sendall(bytes(250_000))
"""
_OPEN = """
import socket, sys
with socket.create_server((sys.argv[1], 5000)) as server:
    print("ready", flush=True)
    while True:
        server.accept()[0].close()
"""
# Tells every other host its own address, and prints whom it heard.
_MEET = """
import socket, sys, time
me, others = sys.argv[1], sys.argv[2:]
heard = []
with socket.create_server((me, 5000)) as server:
    for host in others:
        until = time.monotonic() + 20
        while True:
            try:
                with socket.create_connection((host, 5000), 20) as peer:
                    peer.sendall(me.encode())
                break
            except ConnectionRefusedError:  # it has not begun to listen
                if time.monotonic() > until:
                    raise
                time.sleep(0.01)
    for _ in others:
        with server.accept()[0] as peer:
            heard.append(peer.recv(100).decode())
print(*sorted(heard))
"""


@pytest.fixture(scope="module")
def _permitted() -> None:
    if (reason := unavailable_reason()) is not None:
        pytest.skip(reason)


def start(network: Network, rank: int, code: str, *args: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        network.command(rank, [sys.executable, "-I", "-S", "-c", code, *args]),
        stdout=subprocess.PIPE,
        text=True,
    )


def said(worker: subprocess.Popen[str]) -> str:
    out, _ = worker.communicate(timeout=30)
    assert worker.returncode == 0
    return out


def meet(network: Network, server: str, client: str) -> tuple[str, str]:
    """Run a server as worker 0 and its client as worker 1; return what each printed."""
    with start(network, 0, server, network.hosts[0]) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "ready\n"
        with start(network, 1, client, network.hosts[0]) as second:
            return said(first), said(second)


def sleeper(network: Network) -> subprocess.Popen[str]:
    worker = start(network, 1, "import time; print('up', flush=True); time.sleep(100)")
    assert worker.stdout is not None
    assert worker.stdout.readline() == "up\n"
    return worker


def namespaces_held() -> list[str]:
    found: list[str] = []
    for name in os.listdir("/proc/self/fd"):
        link = Path("/proc/self/fd", name)
        if link.is_symlink() and (target := os.readlink(link)).startswith("net:"):
            found.append(target)
    return found


def namespaces_named() -> str:
    return subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout


def runs(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


@pytest.mark.usefixtures("_permitted")
def test_a_round_trip_takes_what_was_asked_for() -> None:
    with emulated(Link(rtt_ms=40.0), 2) as network:
        _, out = meet(network, _ECHO, _TRIPS)
        times = json.loads(out)
        assert min(times) >= 0.040
        assert min(times) <= 0.055, "generous, and the best of five: other programs may keep the machine busy"
        counts = network.counts()
    assert counts.num_frames >= 10
    assert counts.num_dropped == 0
    assert 0 < network.cpu_s() < 5


@pytest.mark.usefixtures("_permitted")
def test_the_rate_is_kept() -> None:
    with emulated(Link(rtt_ms=2.0, mbit_s=10.0), 2) as network:
        out, _ = meet(network, _SINK, _SOURCE)
        size, seconds = out.split()
        assert int(size) == 250_000
        assert 0.15 <= float(seconds) < 2.0, "2 Mbit at 10 Mbit/s, and the headers"
        assert network.counts().wire_bytes > 250_000


@pytest.mark.usefixtures("_permitted")
def test_three_workers_reach_each_other_without_delay() -> None:
    with emulated(Link(), 3) as network:
        hosts = network.hosts
        others = [[host for host in hosts if host != me] for me in hosts]
        workers = [
            start(network, rank, _MEET, me, *rest)
            for rank, (me, rest) in enumerate(zip(hosts, others, strict=True))
        ]
        try:
            assert [said(worker).split() for worker in workers] == others
        finally:
            for worker in workers:
                worker.kill()
                worker.communicate()


def shown(network: Network, argv: Sequence[str]) -> str:
    return subprocess.run(
        network.command(0, argv), capture_output=True, text=True, check=True, timeout=20
    ).stdout


@pytest.mark.usefixtures("_permitted")
def test_the_window_is_wide_and_the_device_is_the_only_one() -> None:
    with emulated(Link(), 2) as network:
        for name in ("tcp_rmem", "tcp_wmem"):
            # 1 Gbit/s × 200 ms, twice, and the kernel gives half of a buffer to the window
            assert int(shown(network, ["cat", f"/proc/sys/net/ipv4/{name}"]).split()[2]) >= 4 * 25_000_000
        names = [line.split(":")[1].strip() for line in shown(network, ["ip", "-o", "link"]).splitlines()]
        assert names == ["lo", network.interface]
        assert "inet6" not in shown(network, ["ip", "addr"])
        assert network.congestion_control in shown(
            network, ["cat", "/proc/sys/net/ipv4/tcp_congestion_control"]
        )


@pytest.mark.usefixtures("_permitted")
def test_nothing_crosses_a_link_that_is_cut_until_it_is_mended() -> None:
    asks = "import socket, sys; s = socket.socket(); s.settimeout(1.0); print(s.connect_ex((sys.argv[1], 5000)) == 0)"
    with emulated(Link(), 3) as network:
        server = start(network, 0, _OPEN, network.hosts[0])
        try:
            assert server.stdout is not None
            assert server.stdout.readline() == "ready\n"
            found: list[str] = []
            for change in (None, network.cut, network.mend):
                if change is not None:
                    change(0, 1)
                found += [said(start(network, rank, asks, network.hosts[0])).strip() for rank in (1, 2)]
        finally:
            server.kill()
            server.communicate()
    assert found == ["True", "True", "False", "True", "True", "True"]


@pytest.mark.usefixtures("_permitted")
def test_two_networks_do_not_meet() -> None:
    with (
        emulated(Link(), 2) as one,
        emulated(Link(), 2) as other,
        start(one, 0, _ECHO, one.hosts[0]) as server,
    ):
        assert one.hosts == other.hosts
        assert server.stdout is not None
        assert server.stdout.readline() == "ready\n"
        knock = f"import socket; print(socket.socket().connect_ex(('{one.hosts[0]}', {_PORT})) == 0)"
        for network, reached in ((other, False), (one, True)):
            with start(network, 1, knock) as client:
                assert said(client) == f"{reached}\n"
        said(server)


def fail(error: type[BaseException], seen: list[Any]) -> None:
    with emulated(Link(), 2) as network:
        seen += [network, sleeper(network)]
        assert runs(network.relay_pid)
        raise error("on purpose")


@pytest.mark.usefixtures("_permitted")
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_nothing_is_left_after_an_exception(error: type[BaseException]) -> None:
    held, names = namespaces_held(), namespaces_named()
    seen: list[Any] = []
    with pytest.raises(error, match="on purpose"):
        fail(error, seen)
    network, worker = seen
    worker.communicate(timeout=20)
    assert worker.returncode == -signal.SIGKILL
    assert not runs(network.relay_pid)
    assert (namespaces_held(), namespaces_named()) == (held, names)
    network.close()  # again: nothing to do
    with pytest.raises(LinkError, match="is closed"):
        network.command(0, ["true"])


def kill_relay(seen: list[Any]) -> None:
    with emulated(Link(), 2) as network:
        seen.append(sleeper(network))
        os.kill(network.relay_pid, signal.SIGKILL)


@pytest.mark.usefixtures("_permitted")
def test_a_killed_relay_is_an_error_and_leaves_nothing() -> None:
    held = namespaces_held()
    seen: list[Any] = []
    with pytest.raises(LinkError, match=r"ended early \(exit status -9\)"):
        kill_relay(seen)
    (worker,) = seen
    worker.communicate(timeout=20)
    assert worker.returncode == -signal.SIGKILL
    assert namespaces_held() == held


@pytest.mark.usefixtures("_permitted")
def test_the_relay_ends_the_workers_when_its_parent_is_gone() -> None:
    network = Network(Link(), 2)
    try:
        worker = sleeper(network)
        stdin = network._relay._process.stdin  # the kernel closes it when a process is killed
        assert stdin is not None
        stdin.close()
        worker.communicate(timeout=20)
        assert worker.returncode == -signal.SIGKILL
        until = time.monotonic() + 20
        while network._relay._process.poll() is None and time.monotonic() < until:
            time.sleep(0.01)
        assert network._relay._process.returncode == 0
    finally:
        network.close()


@pytest.mark.usefixtures("_permitted")
def test_a_rank_that_is_not_there() -> None:
    with emulated(Link(), 2) as network, pytest.raises(ConfigError, match="rank 2: expected 0 to 1"):
        network.command(2, ["true"])


@pytest.mark.parametrize("num_workers", [0, 1, 17])
def test_a_number_of_workers_out_of_range(num_workers: int) -> None:
    with pytest.raises(ConfigError, match=f"between {num_workers} workers: expected 2 to 16"):
        Network(Link(), num_workers)


@pytest.mark.skipif(sys.platform != "linux", reason="says first that it is not Linux")
def test_without_rights_it_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1234)
    reason = unavailable_reason()
    assert reason is not None
    assert "needs Linux, root, /dev/net/tun" in reason
    assert "this is user 1234, not root" in reason
    assert reason.endswith("or leave out --link")


@pytest.mark.usefixtures("_permitted")
def test_what_the_kernel_refuses_is_said() -> None:
    with pytest.raises(
        ConfigError, match=r"cannot write /proc/sys/net/ipv4/tcp_rmem: Invalid.*leave out --link"
    ):
        RelayProcess(Link(), 2, {"net/ipv4/tcp_rmem": "many"})
